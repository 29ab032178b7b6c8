"""Squares of patches put together, and two matrices with an activation between, over images of any shape (LFM2-VL)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.connectors.patch_merger import merged_squares
from export.nn.linear import Linear, activation
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.patches import Grid

_EPS = 1e-5
"""Of PyTorch's LayerNorm, which no config of the model changes."""


class UnshuffledProjector(Module):
    """Each square of patches as one vector of the decoder's width (LFM2, arXiv 2511.23404, on its vision models).

    Args:
        sizes: Of a patch, between the matrices, and of the decoder.
        factor: Side of a square.
        hidden_act: Of the activation.
        rows: Squares of a usual image.
        bias: Whether both matrices add one.
        has_norm: Whether squares are normed first.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int],
        factor: int,
        hidden_act: str,
        *,
        rows: int,
        bias: bool,
        has_norm: bool,
        name: str,
    ) -> None:
        super().__init__(name)
        self.in_size, inner, out_size = sizes
        wide = self.in_size * factor**2
        self.layer_norm = LayerNorm(wide, _EPS) if has_norm else None
        self.linear_1 = Linear(wide, inner, rows=rows, bias=bias)
        self.linear_2 = Linear(inner, out_size, rows=rows, bias=bias)
        self.factor, self.hidden_act = factor, hidden_act

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return [I, N / factor^2, out_size] from [I, N, in_size], row by row."""
        squares = merged_squares(op, x, grid, self.in_size, self.factor)
        normed = squares if self.layer_norm is None else self.layer_norm(op, squares)
        return self.linear_2(op, activation(op, self.hidden_act, self.linear_1(op, normed)))
