"""A square table of learned positions, smoothed where it is shrunk to the grid of an image."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module, Weight
from export.nn.patches import Grid

Kernel = Literal["triangle", "cubic"]
_CUBIC_A = -0.5
"""Of the cubic kernel (Keys 1981), as Pillow and PyTorch take it where they smooth."""


class AntialiasedPositions(Module):
    """Learned positions of patches, of which the table holds nothing else (SigLIP 2, NaFlex).

    Args:
        side: Of the table, which has side * side rows.
        size: D.
    """

    def __init__(self, side: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(side * side, size)
        self.side = side
        self.size = size

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return x [I, N, D] plus the position of each patch."""
        return op.Add(x, resampled(op, self.weight, self.side, self.size, grid, "triangle"))


def resampled(op: OpBuilder, table: ir.Value, side: int, size: int, grid: Grid, kernel: Kernel) -> ir.Value:
    """Return [1, N, D] a table of [side * side, D] resampled to a grid, by kernels as wide as a patch or as a row.

    That is PyTorch's `interpolate` with `antialias` and without `align_corners`: bilinear or bicubic where the grid is
    finer than the table, a mean over all rows that a patch covers where it is coarser. Both sides are resampled apart,
    each by a matrix that the graph makes of the grid: standard operators, which every runtime has.
    """
    middles = op.initializer(ir.tensor(np.arange(side, dtype=np.float32) + np.float32(0.5)), "position_middles")
    lines = op.Reshape(table, [side, side * size])
    down = op.Reshape(op.MatMul(_shares(op, grid.height, middles, side, kernel), lines), [0, side, size])
    places = op.MatMul(_shares(op, grid.width, middles, side, kernel), down)
    return op.Reshape(places, [1, -1, size])


def stretched(op: OpBuilder, table: ir.Value, num_rows: int, count: ir.Value) -> ir.Value:
    """Return [count, D] a table of [num_rows, D] in another length, linear between the two rows around each place.

    That is PyTorch's `interpolate` in one dimension without `align_corners`, by a matrix as above.
    """
    middles = op.Constant(value=ir.tensor(np.arange(num_rows, dtype=np.float32) + np.float32(0.5)))
    last = num_rows - 0.5
    centre = op.Add(op.Relu(op.Sub(_centres(op, count, num_rows), 0.5)), 0.5)
    within = op.Sub(last, op.Relu(op.Sub(last, centre)))
    return op.MatMul(op.Relu(op.Sub(1.0, _distance(op, op.Sub(middles, within)))), table)


def _centres(op: OpBuilder, count: ir.Value, num_rows: int) -> ir.Value:
    """Return [n, 1] where the middle of each of [1] int64 n places lies among rows."""
    scale = op.Div(float(num_rows), op.Cast(count, to=ir.DataType.FLOAT))
    index = op.Cast(op.Range(0, op.Squeeze(count, [0]), 1), to=ir.DataType.FLOAT)
    return op.Unsqueeze(op.Mul(op.Add(index, 0.5), scale), [1])


def _distance(op: OpBuilder, away: ir.Value) -> ir.Value:
    return op.Add(op.Relu(away), op.Relu(op.Sub(0.0, away)))  # Max and Abs have no float16 kernels everywhere


def _shares(op: OpBuilder, num_patches: ir.Value, middles: ir.Value, side: int, kernel: Kernel) -> ir.Value:
    """Return [n, side] how much of each row of the table every patch along one side takes; rows sum to 1.

    Args:
        op: The builder.
        num_patches: [1] int64, n.
        middles: [side] of the table's rows.
        side: Of the table.
        kernel: By which rows count less the farther away they are.
    """
    scale = op.Div(float(side), op.Cast(num_patches, to=ir.DataType.FLOAT))
    width = op.Add(op.Relu(op.Sub(scale, 1.0)), 1.0)
    distance = _distance(op, op.Div(op.Sub(middles, _centres(op, num_patches, side)), width))
    weights = op.Relu(op.Sub(1.0, distance)) if kernel == "triangle" else _cubic(op, distance)
    return op.Div(weights, op.ReduceSum(weights, [1], keepdims=1))


def _cubic(op: OpBuilder, distance: ir.Value) -> ir.Value:
    """Return the cubic kernel of distances from 0: one polynomial until 1, another until 2, then nothing.

    Both are 0 at their ends, so that each is read within its bounds and they are added: comparisons of floats have no
    kernels on CUDA.
    """
    a = _CUBIC_A
    near = _polynomial(op, _at_most_one(op, distance), (a + 2, -(a + 3), 0.0, 1.0))
    beyond = op.Add(_at_most_one(op, op.Relu(op.Sub(distance, 1.0))), 1.0)
    return op.Add(near, _polynomial(op, beyond, (a, -5 * a, 8 * a, -4 * a)))


def _at_most_one(op: OpBuilder, x: ir.Value) -> ir.Value:
    return op.Sub(1.0, op.Relu(op.Sub(1.0, x)))


def _polynomial(op: OpBuilder, x: ir.Value, factors: tuple[float, float, float, float]) -> ir.Value:
    third, second, first, none = factors
    return op.Add(op.Mul(op.Add(op.Mul(op.Add(op.Mul(x, third), second), x), first), x), none)
