"""ResNet (arXiv 1512.03385) with its strides in the 3 x 3 convolutions, as torchvision and timm keep it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.convolution import BatchNorm, Convolution
from export.nn.module import Module, ModuleList

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
"""Blocks of each stage."""
_WIDER = 4
"""What a block gives over the width of its 3 x 3 convolution (section 4.1)."""
_EPS = 1e-5
"""Of PyTorch's BatchNorm2d."""


@dataclass(frozen=True)
class ResNetConfig:
    """A tower.

    Attributes:
        depths: Blocks of each stage.
        width: Of the 3 x 3 convolutions of the first stage; each later one doubles it.
        image_px: Side of the images.
    """

    depths: tuple[int, ...]
    width: int
    image_px: int

    @property
    def out_size(self) -> int:
        """Channels of the last stage."""
        return _WIDER * (self.width << (len(self.depths) - 1))

    @property
    def grid(self) -> int:
        """Places along one side of the last stage's map."""
        side = self.image_px
        for _ in range(len(self.depths) + 1):  # the first convolution, the pool, and all stages but the first
            side = (side + 1) // 2
        return side


class _Downsample(Module):
    """What a block's input becomes where its output is wider or smaller."""

    def __init__(self, in_size: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv = Convolution(in_size, size, 1, stride=stride, bias=False, name="0")
        self.norm = BatchNorm(size, _EPS, name="1")

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.norm(op, self.conv(op, x))


class _Block(Module):
    """Three convolutions with norms, and the input added."""

    def __init__(self, in_size: int, width: int, stride: int, *, is_first: bool) -> None:
        super().__init__()
        size = _WIDER * width
        self.conv1 = Convolution(in_size, width, 1, bias=False)
        self.bn1 = BatchNorm(width, _EPS)
        self.conv2 = Convolution(width, width, 3, stride=stride, bias=False)
        self.bn2 = BatchNorm(width, _EPS)
        self.conv3 = Convolution(width, size, 1, bias=False)
        self.bn3 = BatchNorm(size, _EPS)
        self.downsample = _Downsample(in_size, size, stride) if is_first else None

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, 4 width, height, width] from [I, in, height, width]."""
        inner = op.Relu(self.bn1(op, self.conv1(op, x)))
        inner = op.Relu(self.bn2(op, self.conv2(op, inner)))
        inner = self.bn3(op, self.conv3(op, inner))
        return op.Relu(op.Add(inner, x if self.downsample is None else self.downsample(op, x)))


class ResNet(Module):
    """Pixels to the map of the last stage, place after place.

    Args:
        config: The tower.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: ResNetConfig, name: str) -> None:
        super().__init__(name)
        self.conv1 = Convolution(3, config.width, 7, stride=2, bias=False)
        self.bn1 = BatchNorm(config.width, _EPS)
        self.num_stages, size = len(config.depths), config.width
        for stage, depth in enumerate(config.depths):
            width, blocks = config.width << stage, list[Module]()
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(_Block(size, width, stride, is_first=not number))
                size = _WIDER * width
            setattr(self, f"layer{stage + 1}", ModuleList(blocks))

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, C], row by row, from [I, 3, height, width]."""
        x = op.Relu(self.bn1(op, self.conv1(op, pixel_values)))
        x = op.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for stage in range(self.num_stages):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(op, x)
        return op.Transpose(op.Reshape(x, [0, 0, -1]), perm=[0, 2, 1])
