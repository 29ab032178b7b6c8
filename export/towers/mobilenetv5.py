"""MobileNetV5, Gemma 3n's tower: timm's `mobilenetv5_300m_enc`, of blocks of MobileNetV4 (arXiv 2404.10518).

Convolutions at four scales, attention at the two smallest, which are then fused to one (timm's
`MobileNetV5MultiScaleFusionAdapter`). Norms are root mean squares over the channels of a place; between blocks channels
stand last, where matrices and norms want them. Weights are named as timm's.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.convolution import Convolution, Pointwise
from export.nn.dialect import Dialect, Heads
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import RMSNorm
from export.towers.mobilenetv5_config import FUSED_SIZE, STEM_STRIDE, Block, MobileNetV5Config, divisible

_EPS = 1e-6
"""Of every norm (timm, `RmsNorm2d`)."""
_FUSED_RATIO = 2.0
"""Width inside the fusion, over that of both scales together."""


class _Convolution(Convolution):
    """A convolution of channels that stand last, padded as TensorFlow pads: what is odd stands below and on the right.

    Args:
        sizes: Channels in and out.
        kernel: Side.
        side: Of the input.
        stride: Of both axes.
        groups: As many channels apart from each other.
        bias: Whether one is added.
    """

    def __init__(
        self, sizes: tuple[int, int], kernel: int, side: int, *, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> None:
        super().__init__(*sizes, kernel, stride=stride, groups=groups, bias=bias)
        padded = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        self.pads = [padded // 2] * 2 + [padded - padded // 2] * 2

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, height, width, out] from [I, height, width, in]."""
        first = op.Transpose(x, perm=[0, 3, 1, 2])
        bias = [] if self.bias is None else [self.bias]
        made = op.Conv(
            first,
            self.weight,
            *bias,
            kernel_shape=[self.side] * 2,
            strides=[self.stride] * 2,
            pads=self.pads,
            group=self.groups,
        )
        return op.Transpose(made, perm=[0, 2, 3, 1])


class _Normed(Module):
    """A convolution or a matrix, a norm, and an activation where there is one."""

    def __init__(self, conv: Module, channels: int, dialect: Dialect, *, acts: bool) -> None:
        super().__init__()
        self.conv = conv
        self.bn = RMSNorm(channels, _EPS, dialect)
        self.acts = acts

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        normed = self.bn(op, self.conv(op, x))
        return op.Gelu(normed, approximate="tanh") if self.acts else normed


class _Scale(Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = Weight(channels)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Mul(x, self.gamma)


class _Edge(Module):
    """A convolution that widens, and a matrix back (timm's `EdgeResidual`)."""

    def __init__(self, block: Block, taken: int, side: int, dialect: Dialect) -> None:
        super().__init__()
        inner, given = divisible(taken * block.ratio), side // block.stride
        self.conv_exp = _Convolution((taken, inner), block.kernels[0], side, stride=block.stride)
        self.bn1 = RMSNorm(inner, _EPS, dialect)
        self.conv_pwl = Pointwise(inner, block.width, rows=given**2, bias=False)
        self.bn2 = RMSNorm(block.width, _EPS, dialect)
        self.is_added = block.stride == 1 and taken == block.width

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        inner = op.Gelu(self.bn1(op, self.conv_exp(op, x)), approximate="tanh")
        made = self.bn2(op, self.conv_pwl(op, inner))
        return op.Add(made, x) if self.is_added else made


class _Inverted(Module):
    """A matrix that widens and one back, channels convolved apart before and between (MobileNetV4, section 3)."""

    def __init__(self, block: Block, taken: int, side: int, dialect: Dialect, *, is_fusion: bool = False) -> None:
        super().__init__()
        inner, (before, between) = divisible(taken * block.ratio), block.kernels
        at = 1 if between else block.stride
        self.dw_start: Module | None = None
        if before:
            conv = _Convolution((taken, taken), before, side, stride=at, groups=taken)
            self.dw_start = _Normed(conv, taken, dialect, acts=False)
        rows = (side // at) ** 2
        self.pw_exp = _Normed(Pointwise(taken, inner, rows=rows, bias=False), inner, dialect, acts=True)
        self.dw_mid: Module | None = None
        if between:
            conv = _Convolution((inner, inner), between, side, stride=block.stride, groups=inner)
            self.dw_mid = _Normed(conv, inner, dialect, acts=True)
        rows = (side // block.stride) ** 2
        back = Pointwise(inner, block.width, rows=rows, bias=False)
        self.pw_proj = _Normed(back, block.width, dialect, acts=False)
        self.layer_scale = None if is_fusion else _Scale(block.width)
        self.is_added = block.stride == 1 and taken == block.width and not is_fusion

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        made = x
        for part in (self.dw_start, self.pw_exp, self.dw_mid, self.pw_proj, self.layer_scale):
            made = made if part is None else part(op, made)
        return op.Add(made, x) if self.is_added else made


class _Projected(Module):
    """A matrix, behind a convolution of single channels and a norm where keys and values are of fewer places."""

    def __init__(self, block: Block, sizes: tuple[int, int], side: int, dialect: Dialect, *, stride: int = 1) -> None:
        super().__init__()
        taken, given = sizes
        self.down_conv: Module | None = None
        if stride > 1:
            self.down_conv = _Convolution((taken, taken), block.kernels[0], side, stride=stride, groups=taken)
            self.norm = RMSNorm(taken, _EPS, dialect)
        self.proj = Pointwise(taken, given, rows=(-(-side // stride)) ** 2, bias=False)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        before = x if self.down_conv is None else self.norm(op, self.down_conv(op, x))
        return self.proj(op, before)


class _Attention(Module):
    """Many heads of queries over one of keys and values (arXiv 1911.02150): for keys, heads are so many more rows."""

    def __init__(self, block: Block, channels: int, side: int, dialect: Dialect) -> None:
        super().__init__()
        size, num = block.head_size, block.num_heads
        self.query = _Projected(block, (channels, num * size), side, dialect)
        self.key, self.value = (
            _Projected(block, (channels, size), side, dialect, stride=block.kv_stride) for _ in range(2)
        )
        self.output = _Projected(block, (num * size, block.width), side, dialect)
        self.heads = Heads(1, 1, size, float(size) ** -0.5)
        self.num, self.side, self.dialect = num, side, dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, height, width, out] from [I, height, width, C]."""
        size = self.heads.size
        query, key, value = (op.Reshape(part(op, x), [0, -1, size]) for part in (self.query, self.key, self.value))
        attended = self.dialect.attention(op, query, key, value, self.heads, None)
        return self.output(op, op.Reshape(attended, [0, self.side, self.side, self.num * size]))


class _Attending(Module):
    """Attention of normed places, scaled, with its residual (timm's `MobileAttention`)."""

    def __init__(self, block: Block, taken: int, side: int, dialect: Dialect) -> None:
        super().__init__()
        self.norm = RMSNorm(taken, _EPS, dialect)
        self.attn = _Attention(block, taken, side, dialect)
        self.layer_scale = _Scale(block.width)
        self.is_added = taken == block.width

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        made = self.layer_scale(op, self.attn(op, self.norm(op, x)))
        return op.Add(made, x) if self.is_added else made


class _Fusion(Module):
    """The two smallest scales side by side, the smaller one enlarged, through one block; averaged and normed."""

    def __init__(self, config: MobileNetV5Config, side: int, dialect: Dialect) -> None:
        super().__init__()
        block = Block("uir", FUSED_SIZE, 1, (0, 0), _FUSED_RATIO)
        self.ffn = _Inverted(block, sum(config.widths), side, dialect, is_fusion=True)
        self.norm = RMSNorm(FUSED_SIZE, _EPS, dialect)
        self.side, self.resolution, self.width = side, config.resolution, config.widths[1]

    def forward(self, op: OpBuilder, large: ir.Value, small: ir.Value) -> ir.Value:
        """Return [I, N, D], row by row, from [I, height, width, C] and one of half the height and width."""
        half, side, given = self.side // 2, self.side, self.resolution
        apart = op.Reshape(small, [0, half, 1, half, self.width])
        twice = op.Concat(apart, apart, axis=2)
        rows = op.Reshape(twice, [0, side, half, 1, self.width])
        enlarged = op.Reshape(op.Concat(rows, rows, axis=3), [0, side, side, self.width])
        fused = self.ffn(op, op.Concat(large, enlarged, axis=-1))
        step = side // given
        if step > 1:
            squares = op.Reshape(fused, [0, given, step, given, step * FUSED_SIZE])
            by_row = op.Reshape(op.ReduceMean(squares, [2], keepdims=0), [0, given, given, step, FUSED_SIZE])
            fused = op.ReduceMean(by_row, [3], keepdims=0)
        return self.norm(op, op.Reshape(fused, [0, given**2, FUSED_SIZE]))


_BLOCKS = {"er": _Edge, "uir": _Inverted, "mqa": _Attending}


class MobileNetV5Tower(Module):
    """Pixels to places of two scales fused.

    Args:
        config: Its blocks.
        dialect: How attention and norms are written.
        name: Where the checkpoint keeps it.
        side_px: Of images; `MobileNetV5Config.check_side` holds of it.
    """

    def __init__(self, config: MobileNetV5Config, dialect: Dialect, name: str, side_px: int) -> None:
        super().__init__(name)
        stem = _Convolution((3, config.stem), 3, side_px, stride=STEM_STRIDE, bias=True)
        self.conv_stem = _Normed(stem, config.stem, dialect, acts=True)
        taken, side, stages = config.stem, side_px // STEM_STRIDE, list[Module]()
        fused_side = side
        for number, stage in enumerate(config.stages):
            made = list[Module]()
            for block in stage:
                made.append(_BLOCKS[block.kind](block, taken, side, dialect))
                taken, side = block.width, side // block.stride
            stages.append(ModuleList(made))
            fused_side = side if number == len(config.stages) - 2 else fused_side
        self.blocks = ModuleList(stages)
        self.msfa = _Fusion(config, fused_side, dialect)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, D], row by row, from [I, 3, height, width]."""
        x = self.conv_stem(op, op.Transpose(pixel_values, perm=[0, 2, 3, 1]))
        scales = list[ir.Value]()
        for stage in self.blocks:
            for block in stage:
                x = block(op, x)
            scales.append(x)
        return self.msfa(op, scales[-2], scales[-1])
