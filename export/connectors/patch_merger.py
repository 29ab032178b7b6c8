"""Squares of patches put together and led through two matrices (Qwen2-VL and later)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.patches import Grid


def merged_squares(op: OpBuilder, x: ir.Value, grid: Grid, size: int, factor: int) -> ir.Value:
    """Return [I, N / factor^2, size * factor^2]: the patches of each square behind one another, row by row.

    Args:
        op: The builder.
        x: [I, N, size], row by row.
        grid: Of the patches, both sides multiples of `factor`.
        size: Width of a patch.
        factor: Side of a square.
    """
    down, across = op.Div(grid.height, factor), op.Div(grid.width, factor)
    shape = op.Concat([-1], down, [factor], across, [factor * size], axis=0)
    squares = op.Transpose(op.Reshape(x, shape), perm=[0, 1, 3, 2, 4])
    images = op.Shape(x, start=0, end=1)
    return op.Reshape(squares, op.Concat(images, [-1, factor * factor * size], axis=0))


class PatchMerger(Module):
    """A norm, then each square of patches as one vector of the decoder's width.

    Args:
        norm: Of a patch, which the checkpoint calls `ln_q`.
        size: Width of a patch.
        out_size: The decoder's.
        factor: Side of a square.
        rows: Tokens of a usual image.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, norm: Module, size: int, out_size: int, factor: int, *, rows: int, name: str) -> None:
        super().__init__(name)
        wide = size * factor**2
        self.ln_q = norm
        self.first = Linear(wide, wide, rows=rows, name="mlp.0")
        self.second = Linear(wide, out_size, rows=rows, name="mlp.2")
        self.size = size
        self.factor = factor

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return [I, N / factor^2, out_size] from [I, N, size]."""
        squares = merged_squares(op, self.ln_q(op, x), grid, self.size, self.factor)
        return self.second(op, op.Gelu(self.first(op, squares)))
