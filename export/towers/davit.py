"""DaViT (Ding et al., arXiv 2204.03645): windows of patches and groups of channels that look at one another in turn."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.nn.convolution import Convolution
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, PackedLinear, activation
from export.nn.module import Module, ModuleList
from export.nn.norms import LayerNorm

DEFAULTS: Raw = {
    "in_channels": 3,
    "depths": (1, 1, 9, 1),
    "patch_size": (7, 3, 3, 3),
    "patch_stride": (4, 2, 2, 2),
    "patch_padding": (3, 1, 1, 1),
    "patch_prenorm": (False, True, True, True),
    "embed_dim": (128, 256, 512, 1024),
    "num_heads": (4, 8, 16, 32),
    "num_groups": (4, 8, 16, 32),
    "window_size": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "activation_function": "gelu",
}
_PACKED = ("qkv.weight", "qkv.bias")
_EPS = 1e-5
"""Of PyTorch's LayerNorm, which no config of the model changes."""


@dataclass(frozen=True)
class Stage:
    """One resolution.

    Attributes:
        in_channels: Of the map before it.
        size: C, of its own.
        side: Of the kernel that makes its patches.
        stride: Of that kernel.
        norms_first: The map before it is normed, and not its own patches.
        depth: Pairs of blocks.
        num_heads: Within a window.
        num_groups: Of channels.
        grid: Height and width of its map.
        window: Side of a window.
        inner_size: Of the feed-forward.
        hidden_act: Of the same.
    """

    in_channels: int
    size: int
    side: int
    stride: int
    norms_first: bool
    depth: int
    num_heads: int
    num_groups: int
    grid: tuple[int, int]
    window: int
    inner_size: int
    hidden_act: str

    @property
    def num_patches(self) -> int:
        """Of its map."""
        return self.grid[0] * self.grid[1]


def read_stages(raw: Raw, image_size_px: int) -> tuple[Stage, ...]:
    """Return the stages of a tower over square images.

    Raises:
        UnsupportedConfigError: Lists of different lengths, kernels that are padded otherwise than by half of their
            side, or widths that heads and groups do not divide.
    """
    full = {**DEFAULTS, **raw}
    require(full, [("in_channels", 3), ("qkv_bias", True)])
    listed = ("embed_dim", "patch_size", "patch_stride", "patch_padding", "patch_prenorm", "depths", "num_heads")
    columns = [list(full[name]) for name in (*listed, "num_groups")]
    if len({len(column) for column in columns}) != 1:
        raise UnsupportedConfigError(f"vision_config: {', '.join(listed)} and num_groups differ in length")
    stages, channels, edge = list[Stage](), 3, image_size_px
    for size, side, stride, padding, norms_first, depth, heads, groups in zip(*columns, strict=True):
        if padding != side // 2 or size % heads or size % groups:
            raise UnsupportedConfigError(
                f"vision_config: a stage of width {size} with kernels of {side} padded by {padding}, {heads} heads and "
                f"{groups} groups; built are paddings of half a kernel, and widths that heads and groups divide"
            )
        edge = (edge + 2 * padding - side) // stride + 1
        stages.append(
            Stage(
                channels,
                size,
                side,
                stride,
                bool(norms_first),
                depth,
                heads,
                groups,
                (edge, edge),
                full["window_size"],
                int(size * full["mlp_ratio"]),
                full["activation_function"],
            )
        )
        channels = size
    return tuple(stages)


def _as_map(op: OpBuilder, x: ir.Value, grid: tuple[int, int]) -> ir.Value:
    """Return [I, C, height, width] of patches [I, N, C]."""
    height, width = grid
    return op.Reshape(op.Transpose(x, perm=[0, 2, 1]), [0, 0, height, width])


def _as_patches(op: OpBuilder, x: ir.Value) -> ir.Value:
    """Return [I, N, C] of a map [I, C, height, width]."""
    return op.Transpose(op.Reshape(x, [0, 0, -1]), perm=[0, 2, 1])


class _Patches(Module):
    """Patches of the map before, normed before or behind the kernel."""

    def __init__(self, stage: Stage, before: tuple[int, int] | None) -> None:
        super().__init__()
        self.conv = Convolution(stage.in_channels, stage.size, stage.side, stride=stage.stride)
        self.norm = LayerNorm(stage.in_channels if stage.norms_first else stage.size, _EPS)
        self.before = before if stage.norms_first else None

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, C] of pixels or of the map before [I, C', height, width]."""
        if self.before is None:
            return self.norm(op, _as_patches(op, self.conv(op, x)))
        normed = self.norm(op, _as_patches(op, x))
        return _as_patches(op, self.conv(op, _as_map(op, normed, self.before)))


class _FeedForward(Module):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.fc1 = Linear(stage.size, stage.inner_size, rows=stage.num_patches)
        self.fc2 = Linear(stage.inner_size, stage.size, rows=stage.num_patches)
        self.hidden_act = stage.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.fc2(op, activation(op, self.hidden_act, self.fc1(op, x)))


class _WindowAttention(Module):
    """Patches of a window look at one another, and at the zeros that fill the last windows (section 3.1)."""

    def __init__(self, stage: Stage, dialect: Dialect) -> None:
        super().__init__()
        height, width = stage.grid
        self.grid, self.window, self.size = stage.grid, stage.window, stage.size
        self.filled = (-height % stage.window, -width % stage.window)
        rows = (height + self.filled[0]) * (width + self.filled[1])
        self.query, self.key, self.value = (
            PackedLinear(stage.size, part, f"{name}_proj", _PACKED, rows=rows) for part, name in enumerate("qkv")
        )
        self.proj = Linear(stage.size, stage.size, rows=rows)
        head = stage.size // stage.num_heads
        self.heads = Heads(stage.num_heads, stage.num_heads, head, float(head) ** -0.5)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, C] from [I, N, C]."""
        height, width = self.grid
        below, right = self.filled
        across, side = (width + right) // self.window, self.window
        whole = op.Reshape(x, [0, height, width, self.size])
        whole = op.Pad(whole, [0, 0, 0, 0, 0, below, right, 0]) if below or right else whole
        cut = op.Reshape(whole, [-1, side, across, side, self.size])
        windows = op.Reshape(op.Transpose(cut, perm=[0, 2, 1, 3, 4]), [-1, side * side, self.size])
        query, key, value = self.query(op, windows), self.key(op, windows), self.value(op, windows)
        seen = self.proj(op, self.dialect.attention(op, query, key, value, self.heads, None))
        back = op.Transpose(op.Reshape(seen, [-1, across, side, side, self.size]), perm=[0, 2, 1, 3, 4])
        whole = op.Reshape(back, [-1, height + below, width + right, self.size])
        return op.Reshape(op.Slice(whole, [0, 0], [height, width], [1, 2]), [-1, height * width, self.size])


class _ChannelAttention(Module):
    """Channels of a group look at one another, each a vector of all patches (section 3.2)."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        rows = stage.num_patches
        self.query, self.key, self.value = (
            PackedLinear(stage.size, part, f"{name}_proj", _PACKED, rows=rows) for part, name in enumerate("qkv")
        )
        self.proj = Linear(stage.size, stage.size, rows=rows)
        self.num_groups, self.size, self.scale = stage.num_groups, stage.size, float(rows) ** -0.5

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, C] from [I, N, C]."""
        parts = [0, 0, self.num_groups, self.size // self.num_groups]
        query, key, value = (op.Reshape(each(op, x), parts) for each in (self.query, self.key, self.value))
        channels, patches = op.Transpose(query, perm=[0, 2, 3, 1]), op.Transpose(key, perm=[0, 2, 1, 3])
        weights = op.Softmax(op.Mul(op.MatMul(channels, patches), self.scale), axis=-1)
        seen = op.MatMul(weights, op.Transpose(value, perm=[0, 2, 3, 1]))
        return self.proj(op, op.Reshape(op.Transpose(seen, perm=[0, 3, 1, 2]), [0, 0, self.size]))


class _Block(Module):
    """Attention and a feed-forward, each behind a norm, and before each a patch's neighbours added to it."""

    def __init__(self, stage: Stage, attention: Module, name: str) -> None:
        super().__init__()
        self.conv1 = Convolution(stage.size, stage.size, 3, groups=stage.size)
        self.norm1 = LayerNorm(stage.size, _EPS)
        setattr(self, name, attention)
        self.attention_name = name
        self.conv2 = Convolution(stage.size, stage.size, 3, groups=stage.size)
        self.norm2 = LayerNorm(stage.size, _EPS)
        self.ffn = _FeedForward(stage)
        self.grid = stage.grid

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, C] from [I, N, C]."""
        x = self._with_neighbours(op, self.conv1, x)
        x = op.Add(x, getattr(self, self.attention_name)(op, self.norm1(op, x)))
        x = self._with_neighbours(op, self.conv2, x)
        return op.Add(x, self.ffn(op, self.norm2(op, x)))

    def _with_neighbours(self, op: OpBuilder, convolution: Convolution, x: ir.Value) -> ir.Value:
        return op.Add(_as_patches(op, convolution(op, _as_map(op, x, self.grid))), x)


class _Pair(Module):
    def __init__(self, stage: Stage, dialect: Dialect) -> None:
        super().__init__()
        self.spatial_block = _Block(stage, _WindowAttention(stage, dialect), "window_attn")
        self.channel_block = _Block(stage, _ChannelAttention(stage), "channel_attn")

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.channel_block(op, self.spatial_block(op, x))


class DaViT(Module):
    """Pixels to the patches of the last stage.

    Args:
        stages: At least one.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, stages: tuple[Stage, ...], dialect: Dialect, name: str) -> None:
        super().__init__(name)
        before = (None, *(stage.grid for stage in stages))
        self.convs = ModuleList([_Patches(stage, grid) for stage, grid in zip(stages, before, strict=False)])
        self.blocks = ModuleList([ModuleList([_Pair(stage, dialect) for _ in range(stage.depth)]) for stage in stages])
        self.grids = [stage.grid for stage in stages]

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, C] from [I, 3, height, width]."""
        found = pixel_values
        for at, (patches, pairs) in enumerate(zip(self.convs, self.blocks, strict=True)):
            x = patches(op, found if at == 0 else _as_map(op, found, self.grids[at - 1]))
            for pair in pairs:
                x = pair(op, x)
            found = x
        return found
