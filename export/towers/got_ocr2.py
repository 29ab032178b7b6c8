"""GOT-OCR 2's tower, which is SAM's (arXiv 2304.02643): windows, relative positions, and a neck of two convolutions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, VisionConfig, require
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, PackedLinear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import PatchEmbedding, tower_heads
from graphs.labels import Label

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
        side: Patches along it.
        size: C, of a head.
        name: Of the table, in the checkpoint: one row for each distance.
    """

    def __init__(self, side: int, size: int, name: str) -> None:
        super().__init__("")
        self.table = Weight(2 * side - 1, size, name=name, label=Label("constant table"))
        self.rows = np.arange(side)[:, None] - np.arange(side)[None, :] + side - 1

    def forward(self, op: OpBuilder, query: ir.Value) -> ir.Value:
        """Return [B, side, M, side] from query [B, side, M, C], whose second axis is the side."""
        of_places = op.Gather(self.table, op.Constant(value=ir.tensor(self.rows)), axis=0)
        return op.MatMul(query, op.Transpose(of_places, perm=[0, 2, 1]))


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
        self.side = side
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, side * side, D] from [B, side * side, D]."""
        longer = replace(self.heads, size=self.heads.size + 2 * self.side)
        query, key = self._longer_query(op, self.query(op, x), longer), self._longer_key(op, self.key(op, x), longer)
        return self.proj(op, self.dialect.attention(op, query, key, self.value(op, x), longer, None))

    def _longer_query(self, op: OpBuilder, query: ir.Value, longer: Heads) -> ir.Value:
        side, num, size = self.side, self.heads.num, self.heads.size
        by_row = op.Reshape(query, [-1, side, side * num, size])
        by_col = op.Transpose(op.Reshape(query, [-1, side, side, num * size]), perm=[0, 2, 1, 3])
        down = op.Reshape(self.down(op, by_row), [-1, side * side, num, side])
        across = self.across(op, op.Reshape(by_col, [-1, side, side * num, size]))
        across = op.Transpose(op.Reshape(across, [-1, side, side, num * side]), perm=[0, 2, 1, 3])
        # scores are scaled, and what distances add to them is not
        added = op.Div(op.Concat(down, op.Reshape(across, [-1, side * side, num, side]), axis=3), self.heads.scale)
        own = op.Reshape(query, [-1, side * side, num, size])
        return op.Reshape(op.Concat(own, added, axis=3), [-1, side * side, num * longer.size])

    def _longer_key(self, op: OpBuilder, key: ir.Value, longer: Heads) -> ir.Value:
        side, num, size = self.side, self.heads.num, self.heads.size
        ones = np.eye(side, dtype=np.float32)
        places = np.concatenate([np.repeat(ones, side, axis=0), np.tile(ones, (side, 1))], axis=1)
        split = op.Reshape(key, [-1, side * side, num, size])
        shape = op.Concat(op.Shape(split, start=0, end=3), [2 * side], axis=0)
        added = op.Expand(op.initializer(ir.tensor(places[:, None, :]), "key_places"), shape)
        return op.Reshape(op.Concat(split, added, axis=3), [-1, side * side, num * longer.size])


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

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, D] from [I, N, D], N patches row by row."""
        normed = self.layer_norm1(op, x)
        attended = self.attn(op, normed) if self.window is None else self._by_windows(op, normed, self.window)
        x = op.Add(x, attended)
        return op.Add(x, self.mlp(op, self.layer_norm2(op, x)))

    def _by_windows(self, op: OpBuilder, x: ir.Value, window: int) -> ir.Value:
        """Return what attention within windows makes of x; windows at the edge hold zeros as well, which are seen."""
        count = -(-self.grid // window)
        behind, whole = count * window - self.grid, count * window
        square = op.Reshape(x, [-1, self.grid, self.grid, self.size])
        filled = _filled(op, square, [self.grid, behind, self.size], axis=2)
        filled = _filled(op, filled, [behind, whole, self.size], axis=1)
        split = op.Reshape(filled, [-1, count, window, count, window * self.size])
        windows = op.Reshape(op.Transpose(split, perm=[0, 1, 3, 2, 4]), [-1, window**2, self.size])
        attended = op.Reshape(self.attn(op, windows), [-1, count, count, window, window * self.size])
        joined = op.Reshape(op.Transpose(attended, perm=[0, 1, 3, 2, 4]), [-1, whole, whole, self.size])
        kept = op.Slice(joined, [0, 0], [self.grid, self.grid], [1, 2]) if behind else joined
        return op.Reshape(kept, [-1, self.grid**2, self.size])


def _filled(op: OpBuilder, x: ir.Value, shape: list[int], *, axis: int) -> ir.Value:
    """Return x [I, ...] with zeros of [I, *shape] behind it; by Concat, for Pad has a kernel on CUDA only of late."""
    if 0 in shape:
        return x
    zeros = op.Expand(0.0, op.Concat(op.Shape(x, start=0, end=1), shape, axis=0))
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
    """

    def __init__(self, config: GotTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        vision = config.vision
        self.patch_embed = _Patches(vision)
        self.pos_embed = Weight(1, vision.grid, vision.grid, vision.tower.hidden_size)
        numbers = range(vision.tower.num_layers)
        self.layers = ModuleList([_Layer(config, dialect, config.window_of(number)) for number in numbers])
        self.neck = Neck(config)
        self.grid, self.size = vision.grid, vision.tower.hidden_size

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, channels, grid, grid] from [I, 3, height, width]."""
        return self.neck(op, self.squared(op, self.passed(op, pixel_values)[-1]))

    def passed(self, op: OpBuilder, pixel_values: ir.Value) -> list[ir.Value]:
        """Return the patches [I, N, D] before the first layer and behind each."""
        x = op.Add(self.patch_embed(op, pixel_values), op.Reshape(self.pos_embed, [1, self.grid**2, self.size]))
        states = [x]
        for layer in self.layers:
            states.append(layer(op, states[-1]))
        return states

    def squared(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, D, grid, grid] of patches [I, N, D]."""
        return op.Reshape(op.Transpose(x, perm=[0, 2, 1]), [-1, self.size, self.grid, self.grid])


class _Patches(Module):
    def __init__(self, vision: VisionConfig) -> None:
        super().__init__()
        self.projection = PatchEmbedding(vision, bias=True)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projection(op, pixel_values)
