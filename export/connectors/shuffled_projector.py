"""Squares of patches put together, a norm, and two matrices with an activation between (InternVL)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.connectors.pixel_shuffle import pixel_shuffle
from export.nn.linear import Linear, activation
from export.nn.module import Module
from export.nn.norms import LayerNorm

_EPS = 1e-5
"""Of PyTorch's LayerNorm, which no config of the model changes."""


class ShuffledProjector(Module):
    """Each square of patches as one vector of the decoder's width (InternVL 1.5, arXiv 2404.16821, section 3.1).

    Args:
        grid: Patches along one side of a tile, a multiple of `factor`.
        in_size: Width of a patch.
        out_size: The decoder's.
        factor: Side of a square.
        hidden_act: Of the activation.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, grid: int, in_size: int, out_size: int, factor: int, hidden_act: str, *, name: str) -> None:
        super().__init__(name)
        rows, wide = (grid // factor) ** 2, in_size * factor**2
        self.layer_norm = LayerNorm(wide, _EPS)
        self.linear_1 = Linear(wide, out_size, rows=rows)
        self.linear_2 = Linear(out_size, out_size, rows=rows)
        self.grid, self.in_size, self.factor, self.hidden_act = grid, in_size, factor, hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, (grid/factor)^2, out_size] from [I, grid*grid, in_size], row by row."""
        squares = self.layer_norm(op, pixel_shuffle(op, x, self.grid, self.in_size, self.factor))
        return self.linear_2(op, activation(op, self.hidden_act, self.linear_1(op, squares)))
