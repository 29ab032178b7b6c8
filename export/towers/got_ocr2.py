"""GOT-OCR 2's tower, which is SAM's (arXiv 2304.02643): windows, relative positions, and a neck of two convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, VisionConfig, require
from export.nn.antialiased_positions import resampled, stretched
from export.nn.dialect import Dialect
from export.nn.linear import Linear, PackedLinear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.patches import Grid
from export.nn.vit import PatchEmbedding, tower_heads
from graphs.labels import Label
from graphs.wide_keys import note_wide_keys

DEFAULTS: Raw = {
    "hidden_size": 768,
    "output_channels": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 1024,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "window_size": 14,
    "global_attn_indexes": (2, 5, 8, 11),
    "mlp_dim": 3072,
}
_NECK_EPS = 1e-6
"""Of the neck's norms, whatever the config says of the layers' (transformers, `GotOcr2LayerNorm`)."""
_PACKED = ("qkv.weight", "qkv.bias")
Side: TypeAlias = int | ir.Value
"""Patches along one side; [1] int64 where squares of several sizes are taken."""


@dataclass(frozen=True)
class GotTowerConfig:
    """Sizes of the tower.

    Attributes:
        vision: Of patches and layers.
        window: Side of a window, in patches; 0: no layer has any.
        global_layers: Layers that look at the whole image.
        num_channels: Behind the neck.
    """

    vision: VisionConfig
    window: int
    global_layers: tuple[int, ...]
    num_channels: int

    @classmethod
    def read(cls, raw: Raw) -> GotTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A switch that is not built.
        """
        require(raw, [("use_abs_pos", True), ("use_rel_pos", True), ("qkv_bias", True)])
        full = {**DEFAULTS, **raw}
        return cls(
            vision=VisionConfig.read({**full, "intermediate_size": full["mlp_dim"]}, DEFAULTS),
            window=int(full["window_size"]),
            global_layers=tuple(full["global_attn_indexes"]),
            num_channels=full["output_channels"],
        )

    def window_of(self, layer: int) -> int | None:
        """Return the side of a layer's windows, in patches; None where it looks at the whole image."""
        return None if layer in self.global_layers or not self.window else self.window


class _Distances(Module):
    """What the distance of a query to each key along one side adds to their score (Li et al., arXiv 2112.01526, 4.1).

    Args:
        side: Patches along it that the table was learned for.
        size: C, of a head.
        name: Of the table, in the checkpoint: one row for each distance.
    """

    def __init__(self, side: int, size: int, name: str) -> None:
        super().__init__("")
        self.table = Weight(2 * side - 1, size, name=name, label=Label("constant table"))
        self.rows = np.arange(side)[:, None] - np.arange(side)[None, :] + side - 1

    def forward(self, op: OpBuilder, query: ir.Value, side: Side) -> ir.Value:
        """Return [B, side, M, side] from query [B, side, M, C], whose second axis is the side."""
        of_places = self._of_places(op) if isinstance(side, int) else self._stretched(op, side)
        return op.MatMul(query, op.Transpose(of_places, perm=[0, 2, 1]))

    def _of_places(self, op: OpBuilder) -> ir.Value:
        """Return [side, side, C] the row of each query and key."""
        return op.Gather(self.table, op.Constant(value=ir.tensor(self.rows)), axis=0)

    def _stretched(self, op: OpBuilder, side: ir.Value) -> ir.Value:
        """Return those of a side of another length, by a table of as many rows, linear between those there are."""
        num_rows, _ = self.table.shape
        table = stretched(op, self.table, num_rows, op.Sub(op.Mul(side, [2]), [1]))
        places = _numbers(op, side)
        rows = op.Sub(op.Add(op.Unsqueeze(places, [1]), op.Sub(side, [1])), places)
        return op.Gather(table, rows, axis=0)


def _numbers(op: OpBuilder, count: ir.Value) -> ir.Value:
    """Return 0, 1, 2, ... as many as [1] int64 says."""
    return op.Range(0, op.Squeeze(count, [0]), 1)


def _reshaped(op: OpBuilder, x: ir.Value, *shape: Side) -> ir.Value:
    """Return x in a shape, some of whose sizes may be known to a run alone."""
    if all(isinstance(each, int) for each in shape):
        return op.Reshape(x, list(shape))
    return op.Reshape(x, op.Concat(*([each] if isinstance(each, int) else each for each in shape), axis=0))


class _Attention(Module):
    """Attention among the patches of a square, with relative positions.

    What distances add to a score is a sum over rows and columns: a query's product with what its place in height and
    in width makes of each key's. Written behind the numbers of a head, with the key's place as a one among zeros, it is
    part of the one product, so that no score is ever stored for every pair of patches: for 4096 of them and 12 heads
    those are 0.8 GB.
    """

    def __init__(self, config: GotTowerConfig, dialect: Dialect, side: int, *, rows: int) -> None:
        super().__init__()
        size, self.heads = config.vision.tower.hidden_size, tower_heads(config.vision.tower)
        self.query, self.key, self.value = (
            PackedLinear(size, part, f"{name}_proj", _PACKED, rows=rows) for part, name in enumerate("qkv")
        )
        self.proj = Linear(size, size, rows=rows)
        self.down = _Distances(side, self.heads.size, "rel_pos_h")
        self.across = _Distances(side, self.heads.size, "rel_pos_w")
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, side: Side) -> ir.Value:
        """Return [B, side * side, D] from [B, side * side, D]."""
        query, key = self._longer_query(op, self.query(op, x), side), self._longer_key(op, self.key(op, x), side)
        attended = self.dialect.attention(op, query, key, self.value(op, x), self.heads, None)
        if not isinstance(side, int):
            note_wide_keys(attended)
        return self.proj(op, attended)

    def _longer_query(self, op: OpBuilder, query: ir.Value, side: Side) -> ir.Value:
        num, size = self.heads.num, self.heads.size
        by_row = _reshaped(op, query, -1, side, _times(op, side, num), size)
        by_col = op.Transpose(_reshaped(op, query, -1, side, side, num * size), perm=[0, 2, 1, 3])
        area = _times(op, side, side)
        down = _reshaped(op, self.down(op, by_row, side), -1, area, num, side)
        across = self.across(op, _reshaped(op, by_col, -1, side, _times(op, side, num), size), side)
        across = op.Transpose(_reshaped(op, across, -1, side, side, _times(op, side, num)), perm=[0, 2, 1, 3])
        # scores are scaled, and what distances add to them is not
        added = op.Div(op.Concat(down, _reshaped(op, across, -1, area, num, side), axis=3), self.heads.scale)
        own = _reshaped(op, query, -1, area, num, size)
        return self._joined(op, op.Concat(own, added, axis=3), side)

    def _longer_key(self, op: OpBuilder, key: ir.Value, side: Side) -> ir.Value:
        split = _reshaped(op, key, -1, _times(op, side, side), self.heads.num, self.heads.size)
        wide = [2 * side] if isinstance(side, int) else op.Mul(side, [2])
        shape = op.Concat(op.Shape(split, start=0, end=3), wide, axis=0)
        places = op.Unsqueeze(_places(op, side), [1])
        return self._joined(op, op.Concat(split, op.Expand(places, shape), axis=3), side)

    def _joined(self, op: OpBuilder, heads: ir.Value, side: Side) -> ir.Value:
        """Return [B, N, heads * size] from [B, N, heads, size]."""
        longer = op.Reshape(heads, [0, 0, -1])
        if not isinstance(side, int):
            return longer
        return op.Reshape(heads, [-1, side * side, self.heads.num * (self.heads.size + 2 * side)])


def _times(op: OpBuilder, side: Side, other: Side) -> Side:
    """Return how many patches or heads so many times a side are."""
    if isinstance(side, int) and isinstance(other, int):
        return side * other
    product: ir.Value = op.Mul(side, [other] if isinstance(other, int) else other)
    return product


def _places(op: OpBuilder, side: Side) -> ir.Value:
    """Return [side * side, 2 * side] the row and the column of each patch, as ones among zeros."""
    if isinstance(side, int):
        ones = np.eye(side, dtype=np.float32)
        places = np.concatenate([np.repeat(ones, side, axis=0), np.tile(ones, (side, 1))], axis=1)
        return op.initializer(ir.tensor(places), "key_places")
    grid, numbers = Grid(side, side), _numbers(op, side)
    marks = [op.Equal(op.Unsqueeze(each, [1]), numbers) for each in (grid.rows(op), grid.cols(op))]
    return op.Cast(op.Concat(*marks, axis=1), to=ir.DataType.FLOAT)


class _FeedForward(Module):
    def __init__(self, config: GotTowerConfig, *, rows: int) -> None:
        super().__init__()
        tower = config.vision.tower
        self.lin1 = Linear(tower.hidden_size, tower.intermediate_size, rows=rows)
        self.lin2 = Linear(tower.intermediate_size, tower.hidden_size, rows=rows)
        self.hidden_act = tower.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.lin2(op, activation(op, self.hidden_act, self.lin1(op, x)))


class _Layer(Module):
    def __init__(self, config: GotTowerConfig, dialect: Dialect, window: int | None) -> None:
        super().__init__()
        tower, self.grid, self.window = config.vision.tower, config.vision.grid, window
        self.layer_norm1 = LayerNorm(tower.hidden_size, tower.layer_norm_eps)
        self.attn = _Attention(config, dialect, window or self.grid, rows=self.grid**2)
        self.layer_norm2 = LayerNorm(tower.hidden_size, tower.layer_norm_eps)
        self.mlp = _FeedForward(config, rows=self.grid**2)
        self.size = tower.hidden_size

    def forward(self, op: OpBuilder, x: ir.Value, side: Side) -> ir.Value:
        """Return [I, N, D] from [I, N, D], N patches row by row."""
        normed = self.layer_norm1(op, x)
        window = self.window
        attended = self.attn(op, normed, side) if window is None else self._by_windows(op, normed, side, window)
        x = op.Add(x, attended)
        return op.Add(x, self.mlp(op, self.layer_norm2(op, x)))

    def _by_windows(self, op: OpBuilder, x: ir.Value, side: Side, window: int) -> ir.Value:
        """Return what attention within windows makes of x; windows at the edge hold zeros as well, which are seen."""
        count, behind, whole = _windows(op, side, window)
        square = _reshaped(op, x, -1, side, side, self.size)
        filled = _filled(op, square, [side, behind, self.size], axis=2)
        filled = _filled(op, filled, [behind, whole, self.size], axis=1)
        split = _reshaped(op, filled, -1, count, window, count, window * self.size)
        windows = op.Reshape(op.Transpose(split, perm=[0, 1, 3, 2, 4]), [-1, window**2, self.size])
        attended = _reshaped(op, self.attn(op, windows, window), -1, count, count, window, window * self.size)
        joined = _reshaped(op, op.Transpose(attended, perm=[0, 1, 3, 2, 4]), -1, whole, whole, self.size)
        if isinstance(behind, int) and behind == 0:
            return op.Reshape(joined, [-1, self.grid**2, self.size])
        ends = [side, side] if isinstance(side, int) else op.Concat(side, side, axis=0)
        return _reshaped(op, op.Slice(joined, [0, 0], ends, [1, 2]), -1, _times(op, side, side), self.size)


def _windows(op: OpBuilder, side: Side, window: int) -> tuple[Side, Side, Side]:
    """Return how many windows cover a side, how many patches they have beyond it, and how many in all."""
    if isinstance(side, int):
        count = -(-side // window)
        return count, count * window - side, count * window
    number = op.Div(op.Add(side, [window - 1]), [window])
    whole = op.Mul(number, [window])
    return number, op.Sub(whole, side), whole


def _filled(op: OpBuilder, x: ir.Value, shape: list[Side], *, axis: int) -> ir.Value:
    """Return x [I, ...] with zeros of [I, *shape] behind it; by Concat, for Pad has a kernel on CUDA only of late."""
    if any(isinstance(each, int) and each == 0 for each in shape):
        return x
    sizes = ([each] if isinstance(each, int) else each for each in shape)
    zeros = op.Expand(0.0, op.Concat(op.Shape(x, start=0, end=1), *sizes, axis=0))
    return op.Concat(x, zeros, axis=axis)


class _Convolution(Module):
    """A square convolution without biases that keeps height and width."""

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__()
        self.weight = Weight(out_channels, in_channels, side, side)
        self.side = side

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Conv(x, self.weight, kernel_shape=[self.side] * 2, pads=[self.side // 2] * 4)


class Neck(Module):
    """Two convolutions, each with a norm over channels.

    Args:
        config: Of the tower.
        name: Where the checkpoint keeps them; the attribute's name by default.
    """

    def __init__(self, config: GotTowerConfig, name: str | None = None) -> None:
        super().__init__(name)
        size, channels = config.vision.tower.hidden_size, config.num_channels
        self.conv1 = _Convolution(size, channels, 1)
        self.layer_norm1 = LayerNorm(channels, _NECK_EPS)
        self.conv2 = _Convolution(channels, channels, 3)
        self.layer_norm2 = LayerNorm(channels, _NECK_EPS)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, channels, height, width] from [I, D, height, width]."""
        for convolution, norm in ((self.conv1, self.layer_norm1), (self.conv2, self.layer_norm2)):
            normed = norm(op, op.Transpose(convolution(op, x), perm=[0, 2, 3, 1]))
            x = op.Transpose(normed, perm=[0, 3, 1, 2])
        return x


class GotTower(Module):
    """Pixels to a square of channels.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        resamples: Images are squares of any whole number of patches, and positions and distances follow their size;
            else they have the config's.
    """

    def __init__(self, config: GotTowerConfig, dialect: Dialect, name: str, *, resamples: bool = False) -> None:
        super().__init__(name)
        vision = config.vision
        self.patch_embed = _Patches(vision)
        self.pos_embed = Weight(1, vision.grid, vision.grid, vision.tower.hidden_size)
        numbers = range(vision.tower.num_layers)
        self.layers = ModuleList([_Layer(config, dialect, config.window_of(number)) for number in numbers])
        self.neck = Neck(config)
        self.grid, self.size = vision.grid, vision.tower.hidden_size
        self.patch_px, self.resamples = vision.patch_size_px, resamples

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, channels, side, side] from [I, 3, height, width]."""
        side = self.side(op, pixel_values)
        return self.neck(op, self.squared(op, self.passed(op, pixel_values)[-1], side))

    def side(self, op: OpBuilder, pixel_values: ir.Value) -> Side:
        """Return how many patches images have along a side."""
        return op.Div(op.Shape(pixel_values, start=2, end=3), [self.patch_px]) if self.resamples else self.grid

    def passed(self, op: OpBuilder, pixel_values: ir.Value) -> list[ir.Value]:
        """Return the patches [I, N, D] before the first layer and behind each."""
        side = self.side(op, pixel_values)
        states = [op.Add(self.patch_embed(op, pixel_values), self._positions(op, side))]
        for layer in self.layers:
            states.append(layer(op, states[-1], side))
        return states

    def _positions(self, op: OpBuilder, side: Side) -> ir.Value:
        """Return [1, N, D]."""
        if isinstance(side, int):
            return op.Reshape(self.pos_embed, [1, self.grid**2, self.size])
        return resampled(op, self.pos_embed, self.grid, self.size, Grid(side, side), "cubic")

    def squared(self, op: OpBuilder, x: ir.Value, side: Side) -> ir.Value:
        """Return [I, D, side, side] of patches [I, N, D]."""
        return _reshaped(op, op.Transpose(x, perm=[0, 2, 1]), -1, self.size, side, side)


class _Patches(Module):
    def __init__(self, vision: VisionConfig) -> None:
        super().__init__()
        self.projection = PatchEmbedding(vision, bias=True)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projection(op, pixel_values)
