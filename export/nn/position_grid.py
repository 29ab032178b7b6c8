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
    """Learned positions between which patches are placed, the corners of image and table on one another.

    Args:
        side: Of the table, which has side * side rows.
        size: D.
    """

    def __init__(self, side: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(side * side, size, label=Label("constant table"))
        self.side = side

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
        last = op.Cast(op.Max(op.Sub(size, 1), 1), to=ir.DataType.FLOAT)
        at = op.Div(op.Mul(op.Cast(index, to=ir.DataType.FLOAT), float(self.side - 1)), last)
        floor = op.Floor(at)
        above = op.Sub(at, floor)
        first = op.Cast(floor, to=ir.DataType.INT64)
        second = op.Min(op.Add(first, 1), self.side - 1)
        return _Taps((first, second), (op.Sub(1.0, above), above))
