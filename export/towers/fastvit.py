"""FastViTHD (FastVLM, arXiv 2412.13303, section 3.2): convolutions at three scales, attention at the two smallest.

It is FastViT (arXiv 2303.14189) with a fifth stage, and timm's `fastvit_mci3`: weights are named as there, and only
those of `inference_mode` are read, in which the branches of training are one convolution (FastViT, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.nn.convolution import BatchNorm, Convolution, Pointwise
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, PackedLinear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm

_HEAD_SIZE = 32
_STEM_STRIDE = 4
_EPS = 1e-5
"""Of batch norms and of the norms before attention."""
_SQUEEZED = 16
"""Channels that share one in the gate behind the last stage (timm's SqueezeExcite, rd_ratio)."""
_WIDENED = 2
"""What the last convolution multiplies channels by (timm, cls_ratio)."""
_PACKED = ("qkv.weight", None)


@dataclass(frozen=True)
class FastViTConfig:
    """Sizes of the stages.

    Attributes:
        layers: Blocks of each.
        widths: Channels of each.
        ratios: Inner width of its feed-forwards, over its channels.
        attends: Which stages attend; the others mix by convolution.
        image_size_px: Side of the input.
    """

    layers: tuple[int, ...]
    widths: tuple[int, ...]
    ratios: tuple[float, ...] = (4.0,) * 5
    attends: tuple[bool, ...] = (False, False, False, True, True)
    image_size_px: int = 0

    @property
    def patch_size_px(self) -> int:
        """Side of the square of pixels that one place behind the last stage stands for."""
        return _STEM_STRIDE << (len(self.layers) - 1)

    @property
    def hidden_size(self) -> int:
        """Channels that the tower gives."""
        return self.widths[-1] * _WIDENED

    def rows(self, stage: int) -> int:
        """Return how many places a stage has."""
        return (self.image_size_px // (_STEM_STRIDE << stage)) ** 2

    @classmethod
    def read(cls, raw: Raw, num_tokens: int) -> FastViTConfig:
        """Return the tower of a config of timm's wrapper.

        Args:
            raw: `architecture` and `model_args`.
            num_tokens: That the tower makes of an image, from which its side follows.

        Raises:
            UnsupportedConfigError: Another tower, its form in training, or arguments that are not read.
        """
        name, stated = str(raw.get("architecture")), dict(raw.get("model_args") or {})
        if name not in FASTVITS:
            raise UnsupportedConfigError(
                f"vision_config.architecture {name!r}: of timm's towers {', '.join(FASTVITS)} are built"
            )
        if not stated.pop("inference_mode", False):
            raise UnsupportedConfigError(
                "vision_config.model_args.inference_mode is not true: the branches of training are not put together "
                "here; do it with timm's reparameterize_model, and save the checkpoint again"
            )
        sizes = FASTVITS[name]
        given: dict[str, Any] = {field: tuple(stated.pop(key)) for key, field in _ARGUMENTS.items() if key in stated}
        if stated or any(len(value) != len(sizes.layers) for value in given.values()):
            raise UnsupportedConfigError(
                f"vision_config.model_args {raw['model_args']}: read are inference_mode, {', '.join(_ARGUMENTS)}, "
                f"the last of {len(sizes.layers)} numbers each"
            )
        changed = replace(sizes, **given)
        side = round(num_tokens**0.5)
        if side * side != num_tokens or any(
            width % _HEAD_SIZE for width, attends in zip(changed.widths, changed.attends, strict=True) if attends
        ):
            raise UnsupportedConfigError(
                f"image_seq_length {num_tokens} and widths {changed.widths}: built are squares of tokens, and heads of "
                f"{_HEAD_SIZE} where a stage attends"
            )
        return replace(changed, image_size_px=side * changed.patch_size_px)


FASTVITS: Mapping[str, FastViTConfig] = {
    "fastvit_mci3": FastViTConfig((2, 12, 24, 4, 2), (96, 192, 384, 768, 1536)),
    "fastvit_mci4": FastViTConfig((2, 12, 24, 4, 4), (128, 256, 512, 1024, 2048)),
}
"""By timm's name; mci3 is what FastVLM calls FastViTHD."""
_ARGUMENTS = {"layers": "layers", "embed_dims": "widths", "mlp_ratios": "ratios"}


class _Convolved(Module):
    """A convolution of a branch that was several in training, with an activation behind."""

    def __init__(self, in_channels: int, out_channels: int, side: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.reparam_conv = Convolution(in_channels, out_channels, side, stride=stride, groups=groups)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Gelu(self.reparam_conv(op, x))


class _Alone(Module):
    """Each channel convolved by itself, without an activation."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.reparam_conv = Convolution(channels, channels, side, groups=channels)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.reparam_conv(op, x)


class _Scale(Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = Weight(channels, 1, 1)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Mul(x, self.gamma)


class _Normed(Module):
    """Each channel convolved by itself, and a batch norm."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels, side, groups=channels, bias=False)
        self.bn = BatchNorm(channels, _EPS)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.bn(op, self.conv(op, x))


class _FeedForward(Module):
    def __init__(self, channels: int, inner: int, *, rows: int) -> None:
        super().__init__()
        self.conv = _Normed(channels, 7)
        self.fc1 = Pointwise(channels, inner, rows=rows)
        self.fc2 = Pointwise(inner, channels, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        last = op.Transpose(self.conv(op, x), perm=[0, 2, 3, 1])
        return op.Transpose(self.fc2(op, op.Gelu(self.fc1(op, last))), perm=[0, 3, 1, 2])


class _MixerBlock(Module):
    """Places mixed by a convolution, then a feed-forward (FastViT, section 3.2.1)."""

    def __init__(self, channels: int, inner: int, *, rows: int) -> None:
        super().__init__()
        self.token_mixer = _Alone(channels, 3)
        self.mlp = _FeedForward(channels, inner, rows=rows)
        self.layer_scale = _Scale(channels)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        x = self.token_mixer(op, x)
        return op.Add(x, self.layer_scale(op, self.mlp(op, x)))


class _Attention(Module):
    def __init__(self, channels: int, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            PackedLinear(channels, part, f"{name}_proj", _PACKED, rows=rows) for part, name in enumerate("qkv")
        )
        self.proj = Linear(channels, channels, rows=rows)
        num = channels // _HEAD_SIZE
        self.heads = Heads(num, num, _HEAD_SIZE, float(_HEAD_SIZE) ** -0.5)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, D] from [I, N, D]."""
        query, key, value = self.query(op, x), self.key(op, x), self.value(op, x)
        return self.proj(op, self.dialect.attention(op, query, key, value, self.heads, None))


class _AttentionBlock(Module):
    """Places mixed by attention, then a feed-forward (FastViT, section 3.1)."""

    def __init__(self, channels: int, inner: int, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels, _EPS)
        self.token_mixer = _Attention(channels, dialect, rows=rows)
        self.layer_scale_1 = _Scale(channels)
        self.mlp = _FeedForward(channels, inner, rows=rows)
        self.layer_scale_2 = _Scale(channels)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, C, height, width] from the same."""
        flat = op.Transpose(op.Reshape(x, [0, 0, -1]), perm=[0, 2, 1])
        mixed = op.Transpose(self.token_mixer(op, self.norm(op, flat)), perm=[0, 2, 1])
        x = op.Add(x, self.layer_scale_1(op, op.Reshape(mixed, op.Shape(x))))
        return op.Add(x, self.layer_scale_2(op, self.mlp(op, x)))


class _Halving(Module):
    """Height and width halved by a large kernel over each channel, which gives two."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        large = _Convolved(in_channels, out_channels, 7, stride=2, groups=in_channels)
        self.proj = ModuleList([large, _Convolved(out_channels, out_channels, 1)])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for part in self.proj:
            x = part(op, x)
        return x


class _Stage(Module):
    def __init__(self, config: FastViTConfig, stage: int, dialect: Dialect) -> None:
        super().__init__()
        width, rows = config.widths[stage], config.rows(stage)
        inner, attends = int(width * config.ratios[stage]), config.attends[stage]
        self.downsample: Module | None = _Halving(config.widths[stage - 1], width) if stage else None
        self.pos_emb: Module | None = _Alone(width, 7) if attends else None
        self.blocks = ModuleList(
            [
                _AttentionBlock(width, inner, dialect, rows=rows) if attends else _MixerBlock(width, inner, rows=rows)
                for _ in range(config.layers[stage])
            ]
        )

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for before in (self.downsample, self.pos_emb):
            x = x if before is None else before(op, x)
        for block in self.blocks:
            x = block(op, x)
        return x


class _Gate(Module):
    """Each channel times what the means of all say of it (squeeze and excitation, arXiv 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = Convolution(channels, channels // _SQUEEZED, 1)
        self.fc2 = Convolution(channels // _SQUEEZED, channels, 1)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        means = op.ReduceMean(x, [2, 3], keepdims=1)
        return op.Mul(x, op.Sigmoid(self.fc2(op, op.Relu(self.fc1(op, means)))))


class _Final(Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reparam_conv = Convolution(in_channels, out_channels, 3, groups=in_channels)
        self.se = _Gate(out_channels)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Gelu(self.se(op, self.reparam_conv(op, x)))


class FastViTTower(Module):
    """Pixels to places of the last stage.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: FastViTConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        width = config.widths[0]
        self.stem = ModuleList(
            [
                _Convolved(3, width, 3, stride=2),
                _Convolved(width, width, 3, stride=2, groups=width),
                _Convolved(width, width, 1),
            ]
        )
        self.stages = ModuleList([_Stage(config, stage, dialect) for stage in range(len(config.layers))])
        self.final_conv = _Final(config.widths[-1], config.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, D], row by row, from [I, 3, height, width]."""
        x = pixel_values
        for part in (*self.stem, *self.stages):
            x = part(op, x)
        return op.Transpose(op.Reshape(self.final_conv(op, x), [0, 0, -1]), perm=[0, 2, 1])
