"""A square table of learned positions, smoothed where it is shrunk to the grid of an image (SigLIP 2, NaFlex)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module, Weight
from export.nn.patches import Grid


class AntialiasedPositions(Module):
    """Learned positions, resampled by triangles as wide as a patch or as a row of the table, whichever is wider.

    That is PyTorch's `interpolate` with `antialias` and without `align_corners`: bilinear where the grid is finer than
    the table, a mean over all rows that a patch covers where it is coarser. Both sides are resampled apart, each by a
    matrix that the graph makes of the grid: standard operators, which every runtime has.

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
        middles = op.initializer(
            ir.tensor(np.arange(self.side, dtype=np.float32) + np.float32(0.5)), "position_middles"
        )
        lines = op.Reshape(self.weight, [self.side, self.side * self.size])
        down = op.Reshape(op.MatMul(self._triangles(op, grid.height, middles), lines), [0, self.side, self.size])
        places = op.MatMul(self._triangles(op, grid.width, middles), down)
        return op.Add(x, op.Reshape(places, [1, -1, self.size]))

    def _triangles(self, op: OpBuilder, num_patches: ir.Value, middles: ir.Value) -> ir.Value:
        """Return [n, side] how much of each row of the table every patch along one side takes; rows sum to 1.

        Args:
            op: The builder.
            num_patches: [1] int64, n.
            middles: [side] of the table's rows.
        """
        scale = op.Div(float(self.side), op.Cast(num_patches, to=ir.DataType.FLOAT))
        index = op.Cast(op.Range(0, op.Squeeze(num_patches, [0]), 1), to=ir.DataType.FLOAT)
        centre = op.Unsqueeze(op.Mul(op.Add(index, 0.5), scale), [1])
        width = op.Add(op.Relu(op.Sub(scale, 1.0)), 1.0)  # Max and Abs have no float16 kernels everywhere
        away = op.Div(op.Sub(middles, centre), width)
        distance = op.Add(op.Relu(away), op.Relu(op.Sub(0.0, away)))
        weights = op.Relu(op.Sub(1.0, distance))
        return op.Div(weights, op.ReduceSum(weights, [1], keepdims=1))
