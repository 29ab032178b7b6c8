"""Squares of normed patches merged into one of their width, and two matrices (Mistral 3, LightOnOCR)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.connectors.patch_merger import merged_squares
from export.nn.dialect import Dialect
from export.nn.linear import Linear, activation
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.nn.patches import Grid


@dataclass(frozen=True)
class MergedSizes:
    """Sizes of the connector.

    Attributes:
        in_size: Width of a patch.
        out_size: The decoder's.
        factor: Side of a square.
        eps: Of the norm.
        hidden_act: Between the two last matrices.
        bias: Whether these add one.
    """

    in_size: int
    out_size: int
    factor: int
    eps: float
    hidden_act: str
    bias: bool


class _Merger(Module):
    def __init__(self, sizes: MergedSizes, rows: int) -> None:
        super().__init__()
        size, factor = sizes.in_size, sizes.factor
        # the checkpoint's squares have the places of a channel side by side, ours the channels of a place
        order = np.arange(size * factor**2).reshape(size, -1).T.reshape(-1)
        self.merging_layer = Linear(size * factor**2, size, rows=rows, bias=False, in_order=order)
        self.size, self.factor = size, factor

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        return self.merging_layer(op, merged_squares(op, x, grid, self.size, self.factor))


class MergedProjector(Module):
    """A norm, each square of patches as one vector, and two matrices with an activation between.

    Args:
        sizes: Of it.
        dialect: How the norm is written.
        rows: Squares of a usual image.
        crops: Images may have a row or a column of patches that is part of no square, which no token shows.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, sizes: MergedSizes, dialect: Dialect, *, rows: int, crops: bool, name: str) -> None:
        super().__init__(name)
        self.norm = RMSNorm(sizes.in_size, sizes.eps, dialect)
        self.patch_merger = _Merger(sizes, rows)
        self.linear_1 = Linear(sizes.in_size, sizes.out_size, rows=rows, bias=sizes.bias)
        self.linear_2 = Linear(sizes.out_size, sizes.out_size, rows=rows, bias=sizes.bias)
        self.sizes, self.crops = sizes, crops

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return [I, N / factor^2, out_size] from [I, N, in_size], row by row."""
        if self.crops:
            x, grid = self._cropped(op, x, grid)
        merged = self.patch_merger(op, self.norm(op, x), grid)
        return self.linear_2(op, activation(op, self.sizes.hidden_act, self.linear_1(op, merged)))

    def _cropped(self, op: OpBuilder, x: ir.Value, grid: Grid) -> tuple[ir.Value, Grid]:
        """Return the patches of whole squares, and their grid."""
        size, factor = self.sizes.in_size, self.sizes.factor
        height, width = (op.Mul(op.Div(side, factor), factor) for side in (grid.height, grid.width))
        images = op.Shape(x, start=0, end=1)
        places = op.Reshape(x, op.Concat(images, grid.height, grid.width, [size], axis=0))
        kept = op.Slice(places, [0, 0], op.Concat(height, width, axis=0), [1, 2])
        return op.Reshape(kept, op.Concat(images, [-1, size], axis=0)), Grid(height, width)
