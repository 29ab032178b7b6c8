"""FastViT (arXiv 2303.14189) as MobileCLIP (2311.17049) and FastVLM (2412.13303) have it: timm's `fastvit_mci*`.

Convolutions at three scales, and attention at the smallest; FastViTHD (FastVLM, section 3.2) has a fifth stage, which
attends too. Weights are named as timm's: with the branches of training, which are summed to one convolution when
they are read (FastViT, section 3.2), or as timm's `reparameterize_model` leaves them.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.convolution import BatchNorm, Convolution, Pointwise
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, PackedLinear
from export.nn.merged_conv import Branch, MergedConv
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.towers.fastvit_config import HEAD_SIZE, FastViTConfig

_EPS = 1e-5
"""Of batch norms and of the norms before attention."""
_SQUEEZED = 16
"""Channels that share one in the gate behind the last stage (timm's SqueezeExcite, rd_ratio)."""
_SQUEEZED_BEFORE = 4
"""The same of gates where a stage begins; their number is then a multiple of `_DIVISOR`."""
_DIVISOR = 8
_SMALL = 3
"""Side of the kernel beside the large one where a stage begins (timm, small_kernel)."""
_PACKED = ("qkv.weight", None)


def _convolution(
    config: FastViTConfig,
    sizes: tuple[int, int],
    side: int,
    branches: Sequence[Branch],
    *,
    stride: int = 1,
    groups: int = 1,
) -> Module:
    """Return what the checkpoint has as one convolution, or as these branches."""
    if config.has_branches:
        return MergedConv(sizes, side, branches, stride=stride, groups=groups)
    return Convolution(*sizes, side, stride=stride, groups=groups)


def _over_parameterised(sizes: tuple[int, int], side: int, stride: int, *, has_scale: bool) -> list[Branch]:
    """Return the branches of MobileOne (arXiv 2206.04040, section 3.2), one convolution of the kernel's side."""
    branches = [Branch.normed("conv_kxk.0", side)]
    if side > 1 and has_scale:
        branches.append(Branch.normed("conv_scale", 1))
    if sizes[0] == sizes[1] and stride == 1:
        branches.append(Branch(None, norm="identity"))
    return branches


class _Convolved(Module):
    """A convolution with an activation behind."""

    def __init__(
        self,
        config: FastViTConfig,
        sizes: tuple[int, int],
        side: int,
        *,
        stride: int = 1,
        groups: int = 1,
        has_scale: bool = True,
    ) -> None:
        super().__init__()
        branches = _over_parameterised(sizes, side, stride, has_scale=has_scale)
        self.reparam_conv = _convolution(config, sizes, side, branches, stride=stride, groups=groups)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Gelu(self.reparam_conv(op, x))


class _Alone(Module):
    """Each channel convolved by itself, without an activation."""

    def __init__(self, config: FastViTConfig, channels: int, side: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.reparam_conv = _convolution(config, (channels, channels), side, branches, groups=channels)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.reparam_conv(op, x)


def mixer_branches(side: int, *, has_scale: bool = True) -> tuple[Branch, ...]:
    """Return RepMixer in training (FastViT, section 3.2.1): x, and a part of what a mixer adds to x without its norm.

    Args:
        side: Of the mixer's kernel.
        has_scale: It has a branch of side 1.
    """
    scaled = Branch("mixer.conv_scale.conv.weight", 1, norm="mixer.conv_scale.bn", scale="layer_scale.gamma")
    return (
        Branch(None),
        Branch("mixer.conv_kxk.0.conv.weight", side, norm="mixer.conv_kxk.0.bn", scale="layer_scale.gamma"),
        *((scaled,) if has_scale else ()),
        Branch(None, norm="mixer.identity", scale="layer_scale.gamma"),
        Branch(None, norm="norm.identity", scale="layer_scale.gamma", sign=-1),
    )


_POSITIONS = (Branch(None), Branch("pos_enc.weight", 7, bias="pos_enc.bias"))
"""Positions by a convolution, beside what they are added to (arXiv 2102.10882)."""


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

    def __init__(self, config: FastViTConfig, channels: int, inner: int, *, rows: int) -> None:
        super().__init__()
        self.token_mixer = _Alone(config, channels, 3, mixer_branches(3))
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
        num = channels // HEAD_SIZE
        self.heads = Heads(num, num, HEAD_SIZE, float(HEAD_SIZE) ** -0.5)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, D] from [I, N, D]."""
        query, key, value = self.query(op, x), self.key(op, x), self.value(op, x)
        return self.proj(op, self.dialect.attention(op, query, key, value, self.heads, None))


class _AttentionBlock(Module):
    """Places mixed by attention, then a feed-forward (FastViT, section 3.1)."""

    def __init__(self, config: FastViTConfig, channels: int, inner: int, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.norm: Module = BatchNorm(channels, _EPS) if config.norms_by_batch else LayerNorm(channels, _EPS)
        self.norms_by_batch = config.norms_by_batch
        self.token_mixer = _Attention(channels, dialect, rows=rows)
        self.layer_scale_1 = _Scale(channels)
        self.mlp = _FeedForward(channels, inner, rows=rows)
        self.layer_scale_2 = _Scale(channels)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, C, height, width] from the same."""
        before = self.norm(op, x) if self.norms_by_batch else x
        flat = op.Transpose(op.Reshape(before, [0, 0, -1]), perm=[0, 2, 1])
        normed = flat if self.norms_by_batch else self.norm(op, flat)
        mixed = op.Transpose(self.token_mixer(op, normed), perm=[0, 2, 1])
        x = op.Add(x, self.layer_scale_1(op, op.Reshape(mixed, op.Shape(x))))
        return op.Add(x, self.layer_scale_2(op, self.mlp(op, x)))


class _Gate(Module):
    """Each channel times what the means of all say of it (squeeze and excitation, arXiv 1709.01507)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1 = Convolution(channels, inner, 1)
        self.fc2 = Convolution(inner, channels, 1)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        means = op.ReduceMean(x, [2, 3], keepdims=1)
        return op.Mul(x, op.Sigmoid(self.fc2(op, op.Relu(self.fc1(op, means)))))


class _Large(Module):
    """Height and width halved by a large kernel over each channel, with a gate where the stage has one."""

    def __init__(self, config: FastViTConfig, sizes: tuple[int, int], *, squeezes: bool) -> None:
        super().__init__()
        branches = (Branch.normed("large_conv", 7), Branch.normed("small_conv", _SMALL))
        self.reparam_conv = _convolution(config, sizes, 7, branches, stride=2, groups=sizes[0])
        fewer = sizes[1] / _SQUEEZED_BEFORE
        inner = max(_DIVISOR, int(fewer + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
        self.se = _Gate(sizes[1], inner) if squeezes else None

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        x = self.reparam_conv(op, x)
        return op.Gelu(x if self.se is None else self.se(op, x))


class _Halving(Module):
    """What a stage begins with; a channel gives two."""

    def __init__(self, config: FastViTConfig, stage: int) -> None:
        super().__init__()
        taken, given = config.widths[stage - 1], config.widths[stage]
        large = _Large(config, (taken, given), squeezes=config.squeezes[stage])
        self.proj = ModuleList([large, _Convolved(config, (given, given), 1)])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for part in self.proj:
            x = part(op, x)
        return x


class _Stage(Module):
    def __init__(self, config: FastViTConfig, stage: int, dialect: Dialect) -> None:
        super().__init__()
        width, rows = config.widths[stage], config.rows(stage)
        inner, attends = int(width * config.ratios[stage]), config.attends[stage]
        self.downsample: Module | None = _Halving(config, stage) if stage else None
        self.pos_emb: Module | None = _Alone(config, width, 7, _POSITIONS) if attends else None
        self.blocks = ModuleList(
            [
                _AttentionBlock(config, width, inner, dialect, rows=rows)
                if attends
                else _MixerBlock(config, width, inner, rows=rows)
                for _ in range(config.layers[stage])
            ]
        )

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for before in (self.downsample, self.pos_emb):
            x = x if before is None else before(op, x)
        for block in self.blocks:
            x = block(op, x)
        return x


class _Final(Module):
    def __init__(self, config: FastViTConfig) -> None:
        super().__init__()
        sizes = (config.widths[-1], config.hidden_size)
        branches = _over_parameterised(sizes, 3, 1, has_scale=True)
        self.reparam_conv = _convolution(config, sizes, 3, branches, groups=sizes[0])
        self.se = _Gate(sizes[1], sizes[1] // _SQUEEZED)

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
        width, has_scale = config.widths[0], config.stem_has_scales
        self.stem = ModuleList(
            [
                _Convolved(config, (3, width), 3, stride=2, has_scale=has_scale),
                _Convolved(config, (width, width), 3, stride=2, groups=width, has_scale=has_scale),
                _Convolved(config, (width, width), 1),
            ]
        )
        self.stages = ModuleList([_Stage(config, stage, dialect) for stage in range(len(config.layers))])
        self.final_conv = _Final(config)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, D], row by row, from [I, 3, height, width]."""
        x = pixel_values
        for part in (*self.stem, *self.stages):
            x = part(op, x)
        return op.Transpose(op.Reshape(self.final_conv(op, x), [0, 0, -1]), perm=[0, 2, 1])
