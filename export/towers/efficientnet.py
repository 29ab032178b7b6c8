"""EfficientNet (arXiv 1905.11946), as ALIGN's checkpoints hold it: a stem, and blocks of convolutions by depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.nn.linear import activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.normed_conv import NormedConv

VISION_DEFAULTS: Raw = {
    "num_channels": 3,
    "image_size": 600,
    "width_coefficient": 2.0,
    "depth_coefficient": 3.1,
    "depth_divisor": 8,
    "kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "in_channels": [32, 16, 24, 40, 80, 112, 192],
    "out_channels": [16, 24, 40, 80, 112, 192, 320],
    "depthwise_padding": [],
    "strides": [1, 2, 2, 2, 1, 2, 1],
    "num_block_repeats": [1, 2, 2, 3, 3, 4, 1],
    "expand_ratios": [1, 6, 6, 6, 6, 6, 6],
    "squeeze_expansion_ratio": 0.25,
    "hidden_act": "swish",
    "hidden_dim": 2560,
    "pooling_type": "mean",
    "batch_norm_eps": 0.001,
}
_BY_STAGE = ("in_channels", "out_channels", "strides", "kernel_sizes", "expand_ratios", "num_block_repeats")
_STEM_CHANNELS = 32
_LEAST_KEPT = 0.9
"""Of a number of channels that is rounded; below, it is rounded up (transformers, `round_filters`)."""


@dataclass(frozen=True)
class _Block:
    """Sizes of one block.

    Attributes:
        taken: Channels of its input.
        given: Channels of its output.
        inner: Channels between.
        squeezed: Channels of its gate.
        kernel: Side.
        stride: 1 or 2.
        is_repeat: It adds its input.
        pads_all_sides: Padding of a stride of 2 stands on all sides, not more below and on the right.
    """

    taken: int
    given: int
    inner: int
    squeezed: int
    kernel: int
    stride: int
    is_repeat: bool
    pads_all_sides: bool

    @property
    def pads(self) -> list[int]:
        """[top, left, bottom, right]."""
        half = self.kernel // 2
        first = half if self.stride == 1 or self.pads_all_sides else half - 1
        return [first, first, half, half]


@dataclass(frozen=True)
class EfficientNetConfig:
    """A tower.

    Attributes:
        blocks: In order.
        stem: Channels behind the first convolution.
        hidden_act: Behind every convolution but the last of a block.
        eps: Of its batch norms.
        pools_by_mean: Over all places; else the largest counts.
        image_size_px: Side of the images.
    """

    blocks: tuple[_Block, ...]
    stem: int
    hidden_act: str
    eps: float
    pools_by_mean: bool
    image_size_px: int

    @classmethod
    def read(cls, raw: Raw) -> EfficientNetConfig:
        """Return the tower of a config.

        Raises:
            UnsupportedConfigError: Stages that are not as many everywhere, or a way of pooling that is not built.
        """
        merged = {**VISION_DEFAULTS, **raw}
        require(merged, [("num_channels", 3)])
        if merged["pooling_type"] not in ("mean", "max"):
            raise UnsupportedConfigError(
                f"vision_config.pooling_type is {merged['pooling_type']!r}; built are mean, max"
            )
        counts = {key: len(merged[key]) for key in _BY_STAGE}
        if len(set(counts.values())) != 1 or not counts["strides"]:
            raise UnsupportedConfigError(f"vision_config has {counts} stages; as many are needed in each list")
        blocks = tuple(_blocks(merged))
        return cls(
            blocks,
            _rounded(merged, _STEM_CHANNELS),
            merged["hidden_act"],
            merged["batch_norm_eps"],
            merged["pooling_type"] == "mean",
            int(merged["image_size"]),
        )

    @property
    def size(self) -> int:
        """Channels of the last block: numbers of an image's vector."""
        return self.blocks[-1].given


def _rounded(raw: Raw, channels: int) -> int:
    divisor, wanted = raw["depth_divisor"], channels * raw["width_coefficient"]
    found = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return int(found + divisor if found < _LEAST_KEPT * wanted else found)


def _blocks(raw: Raw) -> Iterator[_Block]:
    number = 0
    for taken, given, stride, kernel, ratio, repeats in zip(*(raw[key] for key in _BY_STAGE), strict=True):
        first, last = _rounded(raw, taken), _rounded(raw, given)
        for repeat in range(math.ceil(raw["depth_coefficient"] * repeats)):
            channels = last if repeat else first
            squeezed = max(1, int(channels * raw["squeeze_expansion_ratio"]))
            yield _Block(
                channels,
                last,
                channels * ratio,
                squeezed,
                kernel,
                1 if repeat else stride,
                repeat > 0,
                number in raw["depthwise_padding"],
            )
            number += 1


class _Pointwise(Module):
    """A convolution of one place, with biases."""

    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.weight = Weight(given, taken, 1, 1)
        self.bias = Weight(given)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Conv(x, self.weight, self.bias, kernel_shape=[1, 1])


class _Gate(Module):
    """How much each channel counts, told by all places (squeeze and excitation, arXiv 1709.01507)."""

    def __init__(self, block: _Block, hidden_act: str) -> None:
        super().__init__("squeeze_excite")
        self.reduce = _Pointwise(block.inner, block.squeezed)
        self.expand = _Pointwise(block.squeezed, block.inner)
        self.hidden_act = hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        squeezed = activation(op, self.hidden_act, self.reduce(op, op.GlobalAveragePool(x)))
        return op.Mul(x, op.Sigmoid(self.expand(op, squeezed)))


class _BlockLayer(Module):
    def __init__(self, block: _Block, hidden_act: str, eps: float) -> None:
        super().__init__()
        expanded = ("expansion.expand_conv", "expansion.expand_bn")
        by_depth = ("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm")
        projected = ("projection.project_conv", "projection.project_bn")
        self.expand = None
        if block.inner != block.taken:
            self.expand = NormedConv((block.taken, block.inner), 1, expanded, eps)
        inner = (block.inner, block.inner)
        self.by_depth = NormedConv(
            inner, block.kernel, by_depth, eps, stride=block.stride, pads=block.pads, is_depthwise=True
        )
        self.gate = _Gate(block, hidden_act)
        self.project = NormedConv((block.inner, block.given), 1, projected, eps)
        self.is_repeat = block.is_repeat
        self.hidden_act = hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        inner = x if self.expand is None else activation(op, self.hidden_act, self.expand(op, x))
        inner = self.gate(op, activation(op, self.hidden_act, self.by_depth(op, inner)))
        projected = self.project(op, inner)
        return op.Add(projected, x) if self.is_repeat else projected


class _Stem(Module):
    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__("embeddings")
        names = ("convolution", "batchnorm")
        self.conv = NormedConv((3, config.stem), 3, names, config.eps, stride=2, pads=[0, 0, 1, 1])
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return activation(op, self.hidden_act, self.conv(op, pixel_values))


class _Encoder(Module):
    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__("encoder")
        self.blocks = ModuleList([_BlockLayer(block, config.hidden_act, config.eps) for block in config.blocks])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for block in self.blocks:
            x = block(op, x)
        return x


class EfficientNetTower(Module):
    """Pixels to one vector.

    Args:
        config: The tower.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: EfficientNetConfig, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Stem(config)
        self.encoder = _Encoder(config)
        self.pools_by_mean = config.pools_by_mean

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, D] from [I, 3, height, width]."""
        places = self.encoder(op, self.embeddings(op, pixel_values))
        pooled = op.GlobalAveragePool(places) if self.pools_by_mean else op.GlobalMaxPool(places)
        return op.Squeeze(pooled, [2, 3])
