"""Squares of patches averaged, a norm, and one matrix (Gemma 3)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.decoders.gemma import GemmaNorm
from export.nn.dialect import Dialect
from export.nn.module import Module, Weight
from graphs.labels import Label

_MATRIX = "mm_input_projection_weight"


class MeanPool(Module):
    """Each square of patches as their mean, normed, of the decoder's width.

    Args:
        grid: Patches along one side of an image, a multiple of `factor`.
        factor: Side of a square.
        in_size: Width of a patch.
        out_size: The decoder's.
        eps: Of the norm.
        dialect: How it is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self, grid: int, factor: int, in_size: int, out_size: int, eps: float, dialect: Dialect, *, name: str
    ) -> None:
        super().__init__(name)
        rows = (grid // factor) ** 2
        self.mm_soft_emb_norm = GemmaNorm(in_size, eps, dialect)
        self.matrix = Weight(in_size, out_size, name=_MATRIX, label=Label("linear", rows))
        self.grid, self.factor, self.in_size = grid, factor, in_size

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, (grid/factor)^2, out_size] from [I, grid*grid, in_size], row by row."""
        side, factor = self.grid // self.factor, self.factor
        squares = op.Reshape(x, [-1, side, factor, side, factor, self.in_size])
        means = op.Reshape(op.ReduceMean(squares, [2, 4], keepdims=0), [-1, side * side, self.in_size])
        return op.MatMul(self.mm_soft_emb_norm(op, means), self.matrix)
