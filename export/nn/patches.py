"""Patches of images of any shape: their embedding, their grid, and how it turns attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import RopeConfig
from export.nn.module import Module, Weight
from export.nn.rotary import Angles

_THETA = 10_000.0
"""Base of the frequencies of a tower's rotary embedding."""


@dataclass(frozen=True)
class Grid:
    """How many patches an image has, [1] int64 each.

    Attributes:
        height: Rows.
        width: Columns.
    """

    height: ir.Value
    width: ir.Value

    def rows(self, op: OpBuilder) -> ir.Value:
        """Return [N] the row of each patch, row by row."""
        return op.Div(self._numbers(op), self.width)

    def cols(self, op: OpBuilder) -> ir.Value:
        """Return [N] the column of each patch, row by row."""
        return op.Mod(self._numbers(op), self.width)

    def _numbers(self, op: OpBuilder) -> ir.Value:
        return op.Range(0, op.Squeeze(op.Mul(self.height, self.width), [0]), 1)


class _OverFrames(Weight):
    """A convolution over several frames, summed over them: what it is for a still image, which is as many equal ones.

    Args:
        num_frames: Of the checkpoint's convolution.
    """

    def __init__(self, *shape: int, num_frames: int) -> None:
        super().__init__(*shape, name="proj.weight")
        self.num_frames = num_frames

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape can fill this weight."""
        wanted = tuple(int(size) for size in self.shape)
        return stored == (*wanted[:2], self.num_frames, *wanted[2:])

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [D, channels, side, side]."""
        (stored,) = parts
        return np.ascontiguousarray(stored.sum(axis=2, dtype=np.float32))


class VideoPatches(Module):
    """Non-overlapping patches of still images, by a convolution that was trained on frames.

    Args:
        size: D.
        side: Of a patch in pixels.
        num_frames: That a patch spans in the checkpoint.
        bias: Whether it adds one.
    """

    def __init__(self, size: int, side: int, num_frames: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = _OverFrames(size, 3, side, side, num_frames=num_frames)
        self.bias = Weight(size, name="proj.bias") if bias else None
        self.side = side

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D], row by row, and the grid, from [I, channels, height, width]."""
        side = [self.side, self.side]
        bias = [] if self.bias is None else [self.bias]
        grid = op.Conv(pixel_values, self.weight, *bias, kernel_shape=side, strides=side)
        flat = op.Transpose(op.Reshape(grid, [0, 0, -1]), perm=[0, 2, 1])
        return flat, Grid(op.Shape(grid, start=2, end=3), op.Shape(grid, start=3, end=4))


def patch_angles(op: OpBuilder, x: ir.Value, grid: Grid, head_size: int) -> Angles:
    """Return the angles [I, N, C/2] of patches: half of the pairs of a head turn by row, half by column.

    Args:
        op: The builder.
        x: [I, N, D] the patches.
        grid: Of them.
        head_size: C.
    """
    frequencies = op.initializer(
        ir.tensor(RopeConfig("default", _THETA).inverse_frequencies(head_size // 2)), "patch_inverse_frequencies"
    )
    by_axis = [
        op.Mul(op.Unsqueeze(op.Cast(places, to=ir.DataType.FLOAT), [1]), frequencies)
        for places in (grid.rows(op), grid.cols(op))
    ]
    turned = op.Unsqueeze(op.Concat(*by_axis, axis=1), [0])
    shape = op.Concat(op.Shape(x, start=0, end=1), [1, 1], axis=0)
    return Angles(op.Expand(op.Cos(turned), shape), op.Expand(op.Sin(turned), shape))
