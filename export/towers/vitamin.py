"""ViTamin (arXiv 2404.02132, section 4.1): two stages of convolutions, then attention over what they leave.

As timm's `vitamin_*` names and computes it; open_clip takes it by that name.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig
from export.nn.convolution import Convolution
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.towers.timm_vit import TimmBlock

_EPS = 1e-6
"""Of every norm."""
_STRIDE_PX = 16
"""Pixels on a side that one vector of the last stage stands for."""
_EXPANSION = 4
"""Of channels within a block of convolutions."""
_DIVISOR = 8
"""Of their number (timm, `make_divisible`)."""


@dataclass(frozen=True)
class VitaminConfig:
    """What a name stands for.

    Attributes:
        tower: The last stage; its MLP has a gate.
        widths: Channels of the first two stages; the stem has those of the first.
        depths: Blocks of them.
        image_size_px: Side of the images.
        has_positions: The last stage adds some.
    """

    tower: TowerConfig
    widths: tuple[int, int]
    image_size_px: int
    depths: tuple[int, int] = (2, 4)
    has_positions: bool = True

    @property
    def num_rows(self) -> int:
        """Vectors of an image."""
        return (self.image_size_px // _STRIDE_PX) ** 2


def _named(width: int, layers: int, heads: int, first: int, side: int, *, has_positions: bool = True) -> VitaminConfig:
    tower = TowerConfig(width, 2 * width, layers, heads, "gelu", _EPS)
    return VitaminConfig(tower, (first, 2 * first), side, has_positions=has_positions)


_LARGE, _XLARGE = (1024, 31, 16, 160), (1152, 32, 16, 192)
VITAMINS: dict[str, VitaminConfig] = {
    "vitamin_small_224": _named(384, 14, 6, 64, 224),
    "vitamin_base_224": _named(768, 14, 12, 128, 224),
    **{
        f"vitamin_{name}_{side}": _named(*_LARGE, side) for name in ("large", "large2") for side in (224, 256, 336, 384)
    },
    **{f"vitamin_xlarge_{side}": _named(*_XLARGE, side, has_positions=False) for side in (256, 336, 384)},
}
"""By `vision_cfg.timm_model_name`; sizes as timm 1.0.31 has them."""


class _ChannelNorm(LayerNorm):
    """A norm over the channels of each place."""

    def __init__(self, size: int, name: str | None = None) -> None:
        super().__init__(size, _EPS, name=name)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x [I, channels, height, width] normalised."""
        return op.Transpose(super().forward(op, op.Transpose(x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])


class _Stem(Module):
    def __init__(self, size: int) -> None:
        super().__init__("stem")
        self.conv1 = Convolution(3, size, 3, stride=2)
        self.norm1 = _ChannelNorm(size)
        self.conv2 = Convolution(size, size, 3)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.conv2(op, op.Gelu(self.norm1(op, self.conv1(op, pixel_values))))


class _ConvolutionBlock(Module):
    """An inverted bottleneck behind a norm, beside its input or a mean of it."""

    def __init__(self, taken: int, given: int, stride: int) -> None:
        super().__init__()
        wanted = given * _EXPANSION
        inner = max(_DIVISOR, (wanted + _DIVISOR // 2) // _DIVISOR * _DIVISOR)
        self.pre_norm = _ChannelNorm(taken)
        self.expand = Convolution(taken, inner, 1, name="conv1_1x1")
        self.by_depth = Convolution(inner, inner, 3, stride=stride, groups=inner, name="conv2_kxk")
        self.project = Convolution(inner, given, 1, name="conv3_1x1")
        self.shortcut = None
        if taken != given:
            self.shortcut = Convolution(taken, given, 1, name="shortcut.expand" if stride > 1 else "shortcut")
        self.stride = stride

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        inner = op.Gelu(self.expand(op, self.pre_norm(op, x)))
        projected = self.project(op, op.Gelu(self.by_depth(op, inner)))
        if self.stride > 1:
            x = op.AveragePool(x, kernel_shape=[3, 3], strides=[self.stride] * 2, pads=[1] * 4, count_include_pad=0)
        return op.Add(projected, x if self.shortcut is None else self.shortcut(op, x))


class _Stage(Module):
    """Blocks, the first of which halves height and width."""

    def __init__(self, taken: int, given: int, depth: int) -> None:
        super().__init__()
        for number in range(depth):
            block = _ConvolutionBlock(given if number else taken, given, 1 if number else 2)
            setattr(self, str(number), block)
        self.depth = depth

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for number in range(self.depth):
            x = getattr(self, str(number))(op, x)
        return x


class _Backbone(Module):
    """Pixels to places of the last stage's width."""

    def __init__(self, config: VitaminConfig) -> None:
        super().__init__("patch_embed.backbone")
        first, second = config.widths
        self.stem = _Stem(first)
        self.stages = ModuleList([_Stage(first, first, config.depths[0]), _Stage(first, second, config.depths[1])])
        self.pool_norm = _ChannelNorm(second, "pool.norm")
        self.pool = Convolution(second, config.tower.hidden_size, 3, stride=2, name="pool.proj")

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        x = self.stem(op, pixel_values)
        for stage in self.stages:
            x = stage(op, x)
        return self.pool(op, self.pool_norm(op, x))


class _GatedMlp(Module):
    """A norm of its own, two matrices one of which gates the other, and a third."""

    def __init__(self, config: TowerConfig, *, rows: int) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.norm = LayerNorm(size, _EPS)
        self.w0, self.w1 = Linear(size, inner, rows=rows), Linear(size, inner, rows=rows)
        self.w2 = Linear(inner, size, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        x = self.norm(op, x)
        return self.w2(op, op.Mul(op.Gelu(self.w0(op, x)), self.w1(op, x)))


class _Trunk(Module):
    def __init__(self, config: VitaminConfig, dialect: Dialect) -> None:
        super().__init__("trunk")
        tower, rows = config.tower, config.num_rows
        self.backbone = _Backbone(config)
        self.pos_embed = Weight(1, rows, tower.hidden_size) if config.has_positions else None
        blocks = [
            TimmBlock(tower, dialect, rows=rows, mlp=_GatedMlp(tower, rows=rows)) for _ in range(tower.num_layers)
        ]
        self.blocks = ModuleList(blocks)
        self.fc_norm = LayerNorm(tower.hidden_size, _EPS)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, D], the mean of all vectors, normed."""
        x = op.Transpose(op.Reshape(self.backbone(op, pixel_values), [0, 0, -1]), perm=[0, 2, 1])
        x = x if self.pos_embed is None else op.Add(x, self.pos_embed)
        for block in self.blocks:
            x = block(op, x)
        return self.fc_norm(op, op.ReduceMean(x, [1], keepdims=0))


class Vitamin(Module):
    """Pixels to the vector of an image.

    Args:
        config: The tower.
        raw: `vision_cfg`, which says what stands behind it.
        dialect: How attention is written.
        embedding_size: E.

    Raises:
        UnsupportedConfigError: A pooling or a projection that is not built.
    """

    def __init__(self, config: VitaminConfig, raw: Raw, dialect: Dialect, embedding_size: int) -> None:
        super().__init__("visual")
        pool, kind = raw.get("timm_pool", "avg"), raw.get("timm_proj", "linear")
        if pool not in ("", "avg") or kind != "linear":
            raise UnsupportedConfigError(
                f"vision_cfg.timm_pool {pool!r} with timm_proj {kind!r}; of {raw['timm_model_name']} built is the mean "
                "with linear"
            )
        has_bias = bool(raw.get("timm_proj_bias", False))
        self.trunk = _Trunk(config, dialect)
        self.proj = Linear(config.tower.hidden_size, embedding_size, rows=1, bias=has_bias, name="head.proj")

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, E] from [I, 3, height, width]."""
        return self.proj(op, self.trunk(op, pixel_values))
