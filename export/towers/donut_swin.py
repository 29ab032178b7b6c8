"""Swin (arXiv 2103.14030) as Donut's tower: windows that shift from block to block, over images of any one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from graphs.labels import Label

DEFAULTS: Raw = {
    "image_size": 224,
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
}
_EPS = 1e-5
"""Of PyTorch's LayerNorm, which no config of the model changes: of patches, and where they are merged."""
_UNSEEN = -100.0
"""Added to the score of a patch that the shift brought from elsewhere (transformers, `get_attn_mask`)."""


@dataclass(frozen=True)
class SwinConfig:
    """A tower.

    Attributes:
        image_px: Height and width.
        patch_px: Side of a patch.
        size: Width of the first stage; each later one doubles it.
        depths: Blocks of each stage.
        num_heads: Of each stage.
        window: Side of a window, in patches.
        mlp_ratio: Width of a feed-forward over that of its stage.
        qkv_bias: Queries, keys and values have biases.
        hidden_act: Of feed-forwards.
        eps: Of norms in blocks.
    """

    image_px: tuple[int, int]
    patch_px: int
    size: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window: int
    mlp_ratio: float
    qkv_bias: bool
    hidden_act: str
    eps: float

    @classmethod
    def read(cls, raw: Raw) -> SwinConfig:
        """Return the tower of a config.

        Raises:
            UnsupportedConfigError: Learned positions, images that are no whole patches, a map smaller than a window,
                heads that do not divide a stage, or lists of different lengths.
        """
        full = {**DEFAULTS, **raw}
        require(full, [("num_channels", 3), ("use_absolute_embeddings", False)])
        image, patch = _pair(full["image_size"]), _pair(full["patch_size"])
        if patch[0] != patch[1] or any(side % patch[0] for side in image):
            raise UnsupportedConfigError(
                f"encoder: image_size {image} in patches of {patch}; built are whole patches, all of them squares"
            )
        config = cls(
            image,
            patch[0],
            int(full["embed_dim"]),
            tuple(full["depths"]),
            tuple(full["num_heads"]),
            int(full["window_size"]),
            float(full["mlp_ratio"]),
            bool(full["qkv_bias"]),
            str(full["hidden_act"]),
            float(full["layer_norm_eps"]),
        )
        if len(config.depths) != len(config.num_heads):
            raise UnsupportedConfigError(f"encoder: depths {config.depths} and num_heads {config.num_heads}")
        for grid, size, heads in zip(config.grids, config.sizes, config.num_heads, strict=True):
            if min(grid) < config.window or size % heads:
                raise UnsupportedConfigError(
                    f"encoder: a map of {grid} patches of width {size} with {heads} heads and windows of "
                    f"{config.window}; a map holds a window at least, and heads divide the width"
                )
        return config

    @property
    def sizes(self) -> tuple[int, ...]:
        """Width of each stage."""
        return tuple(self.size << number for number in range(len(self.depths)))

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each stage's map, in patches."""
        height, width = (side // self.patch_px for side in self.image_px)
        grids = [(height, width)]
        for _ in self.depths[1:]:
            height, width = (height + 1) // 2, (width + 1) // 2
            grids.append((height, width))
        return tuple(grids)

    @property
    def out_size(self) -> int:
        """Width of the last stage."""
        return self.sizes[-1]

    @property
    def num_rows(self) -> int:
        """Patches of the last stage."""
        height, width = self.grids[-1]
        return height * width


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


class _Projection(Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.weight = Weight(config.size, 3, config.patch_px, config.patch_px)
        self.bias = Weight(config.size)
        self.side = [config.patch_px] * 2

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, C] of [I, 3, height, width]."""
        grid = op.Conv(pixel_values, self.weight, self.bias, kernel_shape=self.side, strides=self.side)
        return op.Transpose(op.Reshape(grid, [0, 0, -1]), perm=[0, 2, 1])


class _Patches(Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.projection = _Projection(config)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projection(op, pixel_values)


class _Embeddings(Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_embeddings = _Patches(config)
        self.norm = LayerNorm(config.size, _EPS)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.norm(op, self.patch_embeddings(op, pixel_values))


class _Distances(Module):
    """What each head adds to the score of a patch by where in the window it stands from the one that looks."""

    def __init__(self, window: int, num_heads: int) -> None:
        super().__init__("self")
        sides = 2 * window - 1
        self.relative_position_bias_table = Weight(sides * sides, num_heads, label=Label("constant table"))
        places = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1).reshape(-1, 2)
        apart = places[:, None] - places[None] + window - 1
        self.rows = (apart[..., 0] * sides + apart[..., 1]).astype(np.int64)

    def forward(self, op: OpBuilder) -> ir.Value:
        """Return [1, H, n, n], n patches of a window."""
        found = op.Gather(
            self.relative_position_bias_table, op.initializer(ir.tensor(self.rows), "window_places"), axis=0
        )
        return op.Unsqueeze(op.Transpose(found, perm=[2, 0, 1]), [0])


def _parted(window: int, shift: int, *, below: bool, right: bool) -> npt.NDArray[np.float32]:
    """Return [n, n], added to scores in a window whose last rows or columns the shift brought from elsewhere."""
    moved = np.arange(window) >= window - shift
    part = 2 * (moved & below)[:, None] + (moved & right)[None]
    apart = part.reshape(-1, 1) != part.reshape(1, -1)
    return np.where(apart, np.float32(_UNSEEN), np.float32(0))


class _Attention(Module):
    """Patches of a window look at one another; windows at the map's ends part what the shift brought together."""

    def __init__(self, config: SwinConfig, stage: int, shift: int, dialect: Dialect) -> None:
        super().__init__()
        size, heads, (height, width) = config.sizes[stage], config.num_heads[stage], config.grids[stage]
        self.window, self.shift, self.size = config.window, shift, size
        self.windows = (-(-height // self.window), -(-width // self.window))
        rows = self.windows[0] * self.windows[1] * self.window**2
        self.query, self.key, self.value = (
            Linear(size, size, rows=rows, bias=config.qkv_bias, name=f"self.{name}")
            for name in ("query", "key", "value")
        )
        self.distances = _Distances(self.window, heads)
        self.dense = Linear(size, size, rows=rows, name="output.dense")
        self.heads = Heads(heads, heads, size // heads, float(size // heads) ** -0.5)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, down, across, n, C], windows of the map, from the same."""
        projected = [each(op, x) for each in (self.query, self.key, self.value)]
        bias = self.distances(op)
        if not self.shift:
            return self.dense(op, self._of(op, projected, bias, self.windows))
        down, across = self.windows
        strips = []
        for first, end, below in ((0, down - 1, False), (down - 1, down, True)):
            parts = []
            for left, right_end, right in ((0, across - 1, False), (across - 1, across, True)):
                cut = [op.Slice(each, [first, left], [end, right_end], [1, 2]) for each in projected]
                parting = _parted(self.window, self.shift, below=below, right=right)
                added = bias
                if below or right:
                    added = op.Add(bias, op.initializer(ir.tensor(parting), f"parting_{below:d}{right:d}"))
                parts.append(self._of(op, cut, added, (end - first, right_end - left)))
            strips.append(op.Concat(*parts, axis=2))
        return self.dense(op, op.Concat(*strips, axis=1))

    def _of(self, op: OpBuilder, projected: Sequence[ir.Value], bias: ir.Value, windows: tuple[int, int]) -> ir.Value:
        places = self.window**2
        query, key, value = (op.Reshape(each, [-1, places, self.size]) for each in projected)
        seen = self.dialect.attention(op, query, key, value, self.heads, bias)
        return op.Reshape(seen, [-1, *windows, places, self.size])


class _Block(Module):
    """Attention and a feed-forward, each behind a norm and with its residual.

    Args:
        config: The tower.
        stage: Its number.
        shift: Patches by which the map moves up and left before it is cut into windows.
        dialect: How attention is written.
    """

    def __init__(self, config: SwinConfig, stage: int, shift: int, dialect: Dialect) -> None:
        super().__init__()
        size, self.grid, self.window = config.sizes[stage], config.grids[stage], config.window
        rows, inner = self.grid[0] * self.grid[1], int(config.mlp_ratio * size)
        self.layernorm_before = LayerNorm(size, config.eps)
        self.attention = _Attention(config, stage, shift, dialect)
        self.layernorm_after = LayerNorm(size, config.eps)
        self.intermediate = Linear(size, inner, rows=rows, name="intermediate.dense")
        self.output = Linear(inner, size, rows=rows, name="output.dense")
        self.hidden_act, self.size, self.shift = config.hidden_act, size, shift

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, C] from [I, N, C]."""
        height, width = self.grid
        seen = self.attention(op, self._cut(op, op.Reshape(self.layernorm_before(op, x), [0, height, width, -1])))
        x = op.Add(x, op.Reshape(self._joined(op, seen), [0, height * width, self.size]))
        inner = activation(op, self.hidden_act, self.intermediate(op, self.layernorm_after(op, x)))
        return op.Add(x, self.output(op, inner))

    def _cut(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return windows [I, down, across, n, C] of a map, filled by zeros, that moved up and left."""
        (height, width), side = self.grid, self.window
        below, right = -height % side, -width % side
        filled = op.Pad(x, [0, 0, 0, 0, 0, below, right, 0]) if below or right else x
        for axis in (1, 2):
            filled = _rolled(op, filled, axis, self.shift)
        down, across = (height + below) // side, (width + right) // side
        parted = op.Reshape(filled, [-1, down, side, across, side, self.size])
        return op.Reshape(op.Transpose(parted, perm=[0, 1, 3, 2, 4, 5]), [-1, down, across, side * side, self.size])

    def _joined(self, op: OpBuilder, windows: ir.Value) -> ir.Value:
        """Return the map [I, height, width, C] of windows, moved back."""
        (height, width), side = self.grid, self.window
        down, across = -(-height // side), -(-width // side)
        parted = op.Reshape(windows, [-1, down, across, side, side, self.size])
        whole = op.Transpose(parted, perm=[0, 1, 3, 2, 4, 5])
        x = op.Reshape(whole, [-1, down * side, across * side, self.size])
        for axis, length in ((1, down * side), (2, across * side)):
            x = _rolled(op, x, axis, length - self.shift if self.shift else 0)
        return op.Slice(x, [0, 0], [height, width], [1, 2])


def _rolled(op: OpBuilder, x: ir.Value, axis: int, places: int) -> ir.Value:
    """Return x with its first places of an axis behind the others."""
    if not places:
        return x
    return op.Concat(op.Slice(x, [places], [2**31 - 1], [axis]), op.Slice(x, [0], [places], [axis]), axis=axis)


class _Merging(Module):
    """Four neighbours become one of twice their width; a map of odd sides is filled by zeros."""

    def __init__(self, size: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.grid = size, grid
        height, width = grid
        self.reduction = Linear(4 * size, 2 * size, rows=-(-height // 2) * -(-width // 2), bias=False)
        self.norm = LayerNorm(4 * size, _EPS)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N / 4, 2 C] of [I, N, C]."""
        height, width = self.grid
        whole = op.Reshape(x, [0, height, width, self.size])
        if height % 2 or width % 2:
            whole = op.Pad(whole, [0, 0, 0, 0, 0, height % 2, width % 2, 0])
        parts = op.Reshape(whole, [0, (height + 1) // 2, 2, (width + 1) // 2, 2, self.size])
        # column by column, as the checkpoint's matrix wants the four
        near = op.Reshape(op.Transpose(parts, perm=[0, 1, 3, 4, 2, 5]), [0, -1, 4 * self.size])
        return self.reduction(op, self.norm(op, near))


class _Stage(Module):
    def __init__(self, config: SwinConfig, stage: int, dialect: Dialect) -> None:
        super().__init__()
        # a map that is one window wide is not parted, and nothing is shifted
        shift = 0 if min(config.grids[stage]) <= config.window else config.window // 2
        blocks = [_Block(config, stage, shift * (number % 2), dialect) for number in range(config.depths[stage])]
        self.blocks = ModuleList(blocks)
        is_last = stage == len(config.depths) - 1
        self.downsample = None if is_last else _Merging(config.sizes[stage], config.grids[stage])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for block in self.blocks:
            x = block(op, x)
        return x if self.downsample is None else self.downsample(op, x)


class _Encoder(Module):
    def __init__(self, config: SwinConfig, dialect: Dialect) -> None:
        super().__init__()
        self.layers = ModuleList([_Stage(config, stage, dialect) for stage in range(len(config.depths))])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for stage in self.layers:
            x = stage(op, x)
        return x


class DonutSwin(Module):
    """Pixels to the patches of the last stage.

    Args:
        config: The tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: SwinConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config, dialect)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, C] from [I, 3, height, width]."""
        return self.encoder(op, self.embeddings(op, pixel_values))
