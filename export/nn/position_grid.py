"""A square table of learned positions, resampled to the grid of an image of any shape."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module, Weight
from export.nn.patches import Grid
from graphs.labels import Label


@dataclass(frozen=True)
class _Taps:
    """The two rows of a table between which each patch stands along one side, and their weights, [N] each."""

    places: tuple[ir.Value, ir.Value]
    weights: tuple[ir.Value, ir.Value]


class PositionGrid(Module):
    """Learned positions between which patches are placed.

    Args:
        side: Of the table, which has side * side rows.
        size: D.
        aligns_corners: The middles of the corner patches lie on those of the table's corners; else the edges of the
            image lie on those of the table (PyTorch, `interpolate`, `align_corners`).
        first_row: Of the checkpoint's table that is a place's; those before are left out.
    """

    def __init__(self, side: int, size: int, *, aligns_corners: bool, first_row: int = 0) -> None:
        super().__init__()
        num = side * side
        rows = (first_row, first_row + num) if first_row else None
        self.weight = Weight(num, size, rows=rows, label=Label("constant table"))
        self.side = side
        self.aligns_corners = aligns_corners

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return x [I, N, D] plus the position of each patch, bilinear among the nearest four."""
        down, across = self._taps(op, grid.rows(op), grid.height), self._taps(op, grid.cols(op), grid.width)
        total = None
        for row, col in product((0, 1), (0, 1)):
            place = op.Add(op.Mul(down.places[row], self.side), across.places[col])
            weight = op.Unsqueeze(op.Mul(down.weights[row], across.weights[col]), [1])
            part = op.Mul(op.Gather(self.weight, place, axis=0), weight)
            total = part if total is None else op.Add(total, part)
        return op.Add(x, total)

    def _taps(self, op: OpBuilder, index: ir.Value, size: ir.Value) -> _Taps:
        at = self._at(op, op.Cast(index, to=ir.DataType.FLOAT), size)
        floor = op.Floor(at)
        above = op.Sub(at, floor)
        first = op.Cast(floor, to=ir.DataType.INT64)
        places = (op.Max(first, 0), op.Min(op.Add(first, 1), self.side - 1))
        return _Taps(places, (op.Sub(1.0, above), above))

    def _at(self, op: OpBuilder, index: ir.Value, size: ir.Value) -> ir.Value:
        """Return where in the table patches of that index stand, along a side of `size` patches."""
        if self.aligns_corners:
            last = op.Cast(op.Max(op.Sub(size, 1), 1), to=ir.DataType.FLOAT)
            return op.Div(op.Mul(index, float(self.side - 1)), last)
        size = op.Cast(size, to=ir.DataType.FLOAT)
        return op.Sub(op.Div(op.Mul(op.Add(index, 0.5), float(self.side)), size), 0.5)
