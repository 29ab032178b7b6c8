"""Patches of images of any shape: their embedding, their grid, and how it turns attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, PackedLinear
from export.nn.module import Module, Weight
from export.nn.rotary import Angles
from export.rope import RopeConfig

_THETA = 10_000.0
"""Base of the frequencies of a tower's rotary embedding."""


_PACKED = ("qkv.weight", "qkv.bias")
_USUAL_PX = 448


def usual_patches(side_px: int) -> int:
    """Return how many patches of that side a usual image has: what layers are planned for."""
    return (_USUAL_PX // side_px) ** 2


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


class StillPatches(Module):
    """Non-overlapping patches of images.

    Args:
        size: D.
        side: Of a patch in pixels.
        bias: Whether the convolution adds one.
    """

    def __init__(self, size: int, side: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = Weight(size, 3, side, side)
        self.bias = Weight(size) if bias else None
        self.side = side

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D], row by row, and the grid, from [I, channels, height, width]."""
        return _patches(op, pixel_values, self.weight, self.bias, self.side)


class _Flattened(Weight):
    """A convolution that the checkpoint keeps as a matrix over flattened patches, whose pixels lie channels last.

    Args:
        size: D.
        side: Of a patch in pixels.
        channels_first: They lie channels first.
    """

    def __init__(self, size: int, side: int, *, channels_first: bool) -> None:
        super().__init__(size, 3, side, side)
        self.channels_first = channels_first

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape can fill this weight."""
        size, channels, side, _ = (int(each) for each in self.shape)
        return stored == (size, side * side * channels)

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [D, channels, side, side]."""
        (stored,) = parts
        size, channels, side, _ = (int(each) for each in self.shape)
        if self.channels_first:
            return np.ascontiguousarray(stored.reshape(size, channels, side, side))
        return np.ascontiguousarray(stored.reshape(size, side, side, channels).transpose(0, 3, 1, 2))


class FlattenedPatches(Module):
    """Non-overlapping patches of images, by a matrix that the checkpoint multiplies flattened ones by (SigLIP 2).

    Args:
        size: D.
        side: Of a patch in pixels.
        bias: Whether it adds one.
        channels_first: Pixels of a flattened patch lie channels first; channels last by default.
        name: Where the checkpoint keeps it; the attribute's name by default.
    """

    def __init__(
        self, size: int, side: int, *, bias: bool = True, channels_first: bool = False, name: str | None = None
    ) -> None:
        super().__init__(name)
        self.weight = _Flattened(size, side, channels_first=channels_first)
        self.bias = Weight(size) if bias else None
        self.side = side

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D], row by row, and the grid, from [I, channels, height, width]."""
        return _patches(op, pixel_values, self.weight, self.bias, self.side)


class _ByFrame(Weight):
    """A convolution over several frames as one over their channels, those of the first frame first.

    Args:
        num_frames: Of the checkpoint's convolution.
    """

    def __init__(self, size: int, side: int, num_frames: int, *, name: str) -> None:
        super().__init__(size, 3 * num_frames, side, side, name=name)
        self.num_frames = num_frames

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape can fill this weight."""
        size, channels, *sides = (int(each) for each in self.shape)
        return stored == (size, channels // self.num_frames, self.num_frames, *sides)

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [D, frames * channels, side, side]."""
        (stored,) = parts
        size, channels, *sides = (int(each) for each in self.shape)
        return np.ascontiguousarray(stored.swapaxes(1, 2).reshape(size, channels, *sides))


class _MatrixByFrame(_ByFrame):
    """The same, of which the checkpoint keeps the matrix over flattened patches, channels before frames."""

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape can fill this weight."""
        size, *rest = (int(each) for each in self.shape)
        return stored == (size, math.prod(rest))

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [D, frames * channels, side, side]."""
        (stored,) = parts
        size, channels, *sides = (int(each) for each in self.shape)
        return super().from_stored([stored.reshape(size, channels // self.num_frames, self.num_frames, *sides)])


class VideoPatches(Module):
    """Non-overlapping patches of groups of a video's frames; a still image is a group of equal ones.

    Args:
        size: D.
        side: Of a patch in pixels.
        num_frames: Of a group.
        bias: Whether the convolution adds one.
        is_matrix: The checkpoint keeps a matrix over flattened patches.
    """

    def __init__(self, size: int, side: int, num_frames: int, *, bias: bool = False, is_matrix: bool = False) -> None:
        super().__init__()
        kept = (_MatrixByFrame, "weight") if is_matrix else (_ByFrame, "proj.weight")
        self.weight = kept[0](size, side, num_frames, name=kept[1])
        self.bias = Weight(size, name="proj.bias") if bias else None
        self.side = side
        self.num_frames = num_frames

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D], row by row, and the grid, from [I, 3 or 3 * frames, height, width]."""
        if self.num_frames > 1:
            pixel_values = self._grouped(op, pixel_values)
        return _patches(op, pixel_values, self.weight, self.bias, self.side)

    def _grouped(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, 3 * frames, height, width]: a still as often as a group has frames, a group as it came."""
        num_channels = 3 * self.num_frames
        repeated = op.Concat(*[pixel_values] * self.num_frames, axis=1)
        whole = op.Slice(repeated, [0], [num_channels], [1])
        images, sides = op.Shape(pixel_values, start=0, end=1), op.Shape(pixel_values, start=2, end=4)
        # says how many channels there are, which a convolution of TensorRT's wants to know
        return op.Reshape(whole, op.Concat(images, [num_channels], sides, axis=0))


def _patches(
    op: OpBuilder, pixel_values: ir.Value, weight: ir.Value, bias: ir.Value | None, side_px: int
) -> tuple[ir.Value, Grid]:
    side = [side_px, side_px]
    biases = [] if bias is None else [bias]  # named and empty, TensorRT's parser refuses it
    grid = op.Conv(pixel_values, weight, *biases, kernel_shape=side, strides=side)
    flat = op.Transpose(op.Reshape(grid, [0, 0, -1]), perm=[0, 2, 1])
    return flat, Grid(op.Shape(grid, start=2, end=3), op.Shape(grid, start=3, end=4))


def patch_angles(op: OpBuilder, x: ir.Value, grid: Grid, head_size: int, theta: float = _THETA) -> Angles:
    """Return the angles [I, N, C/2] of patches: half of the pairs of a head turn by row, half by column.

    Args:
        op: The builder.
        x: [I, N, D] the patches.
        grid: Of them.
        head_size: C.
        theta: Base of the frequencies.
    """
    frequencies = op.initializer(
        ir.tensor(RopeConfig("default", theta).inverse_frequencies(head_size // 2)), "patch_inverse_frequencies"
    )
    return _angles_by_axis(op, x, grid, (frequencies, frequencies))


def alternating_patch_angles(op: OpBuilder, x: ir.Value, grid: Grid, head_size: int, theta: float) -> Angles:
    """Return the angles [I, N, C/2] of patches, as Pixtral has them: of the frequencies of a whole head every second
    one turns by row, first of all, and the others by column (arXiv 2410.07073, section 2.2).

    Args:
        op: The builder.
        x: [I, N, D] the patches.
        grid: Of them.
        head_size: C.
        theta: Base of the frequencies.
    """
    whole = RopeConfig("default", theta).inverse_frequencies(head_size)
    by_row, by_col = (
        op.initializer(ir.tensor(np.ascontiguousarray(whole[first::2])), f"patch_inverse_frequencies_{axis}")
        for first, axis in enumerate(("by_row", "by_column"))
    )
    return _angles_by_axis(op, x, grid, (by_row, by_col))


def _angles_by_axis(op: OpBuilder, x: ir.Value, grid: Grid, frequencies: tuple[ir.Value, ir.Value]) -> Angles:
    by_axis = [
        op.Mul(op.Unsqueeze(op.Cast(places, to=ir.DataType.FLOAT), [1]), of_axis)
        for places, of_axis in zip((grid.rows(op), grid.cols(op)), frequencies, strict=True)
    ]
    turned = op.Unsqueeze(op.Concat(*by_axis, axis=1), [0])
    shape = op.Concat(op.Shape(x, start=0, end=1), [1, 1], axis=0)
    return Angles(op.Expand(op.Cos(turned), shape), op.Expand(op.Sin(turned), shape))


class PackedAttention(Module):
    """Attention among patches, its queries, keys and values in one matrix of the checkpoint.

    Args:
        size: D.
        heads: Of it.
        dialect: How it is written.
        rows: Patches of a usual image.
        bias: Whether its projections have biases.
        norms: Of each head of queries and of keys; None: there are none.
    """

    def __init__(
        self,
        size: int,
        heads: Heads,
        dialect: Dialect,
        *,
        rows: int,
        bias: bool = True,
        norms: tuple[Module, Module] | None = None,
    ) -> None:
        super().__init__()
        sources = _PACKED if bias else (_PACKED[0], None)
        self.query, self.key, self.value = (
            PackedLinear(size, part, f"{name}_proj", sources, rows=rows) for part, name in enumerate("qkv")
        )
        self.proj = Linear(size, size, rows=rows, bias=bias)
        self.q_norm: Module | None
        self.k_norm: Module | None
        self.q_norm, self.k_norm = norms or (None, None)
        self.heads = heads
        self.dialect = dialect

    def forward(
        self, op: OpBuilder, x: ir.Value, angles: Angles, window: int | None = None, bias: ir.Value | None = None
    ) -> ir.Value:
        """Return [I, S, D] from [I, S, D], within windows of so many patches where that is given."""
        query, key = self._normed(op, self.q_norm, self.query(op, x)), self._normed(op, self.k_norm, self.key(op, x))
        query = self.dialect.rotary(op, query, angles.cos, angles.sin, self.heads.num)
        key = self.dialect.rotary(op, key, angles.cos, angles.sin, self.heads.num)
        value, shape = self.value(op, x), op.Shape(x)
        if window is not None:
            inside = [-1, window, self.heads.num * self.heads.size]
            query, key, value = (op.Reshape(each, inside) for each in (query, key, value))
        attended = self.dialect.attention(op, query, key, value, self.heads, bias)
        return self.proj(op, attended if window is None else op.Reshape(attended, shape))

    def _normed(self, op: OpBuilder, norm: Module | None, x: ir.Value) -> ir.Value:
        """Return x [I, S, D] with every head normed."""
        if norm is None:
            return x
        return op.Reshape(norm(op, op.Reshape(x, [0, 0, self.heads.num, self.heads.size])), [0, 0, -1])
