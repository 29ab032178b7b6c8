"""Squares of patches put together, then one matrix (Idefics3)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.squares import squares_shape, tokens_shape

_MATRIX = "modality_projection.proj"


def pixel_shuffle(op: OpBuilder, x: ir.Value, grid: int | ir.Value, size: int, factor: int) -> ir.Value:
    """Return [I, (grid/factor)^2, size*factor^2]: each factor x factor square of patches becomes one longer vector.

    Args:
        op: The builder.
        x: [I, grid*grid, size], row by row.
        grid: Patches along one side, a multiple of `factor`; [1] int64 where the graph counts them.
        size: Width of a patch.
        factor: Side of the square.
    """
    squares = op.Reshape(x, squares_shape(op, grid, factor, [factor * size]))
    gathered = op.Transpose(squares, perm=[0, 1, 3, 2, 4])
    return op.Reshape(gathered, tokens_shape(op, grid, factor, [factor * factor * size]))


class PixelShuffle(Module):
    """Each square of patches as one vector of the decoder's width.

    Args:
        grid: Patches along one side of a tile, a multiple of `factor`.
        in_size: Width of a patch.
        out_size: The decoder's.
        factor: Side of a square.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, grid: int, in_size: int, out_size: int, factor: int, *, name: str) -> None:
        super().__init__(name)
        rows = (grid // factor) ** 2
        self.projection = Linear(in_size * factor**2, out_size, rows=rows, bias=False, name=_MATRIX)
        self.grid, self.in_size, self.factor = grid, in_size, factor

    def forward(self, op: OpBuilder, x: ir.Value, grid: ir.Value | None = None) -> ir.Value:
        """Return [I, (grid/factor)^2, out_size] from [I, grid*grid, in_size], row by row.

        Args:
            op: The builder.
            x: The patches.
            grid: [1] int64, along one side of the tiles of a run; None: as full tiles have them.
        """
        return self.projection(op, pixel_shuffle(op, x, self.grid if grid is None else grid, self.in_size, self.factor))
