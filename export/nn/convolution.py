"""Convolutions of towers that are not made of layers of attention alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module, Weight
from graphs.labels import Label


class Convolution(Module):
    """A square convolution that keeps height and width, or divides them by its stride.

    Args:
        in_channels: Of x.
        out_channels: Of y.
        side: Of the kernel, odd.
        stride: Of both axes.
        groups: As many channels apart from each other; `in_channels`: each by itself.
        bias: Whether one is added.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        side: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.weight = Weight(out_channels, in_channels // groups, side, side)
        self.bias = Weight(out_channels) if bias else None
        self.side, self.stride, self.groups = side, stride, groups

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, out, height, width] from [I, in, height, width]."""
        bias = [] if self.bias is None else [self.bias]  # named and empty, TensorRT's parser refuses it
        return op.Conv(
            x,
            self.weight,
            *bias,
            kernel_shape=[self.side] * 2,
            strides=[self.stride] * 2,
            pads=[self.side // 2] * 4,
            group=self.groups,
        )


class BatchNorm(Module):
    """(x - mean) / sqrt(var + eps) * weight + bias of each channel, mean and var of training."""

    def __init__(self, size: int, eps: float, *, name: str | None = None) -> None:
        super().__init__(name)
        self.weight = Weight(size)
        self.bias = Weight(size)
        self.running_mean = Weight(size)
        self.running_var = Weight(size)
        self.eps = eps

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x [I, size, height, width] normalised."""
        return op.BatchNormalization(x, self.weight, self.bias, self.running_mean, self.running_var, epsilon=self.eps)


class _PointwiseWeight(Weight):
    """A matrix that the checkpoint keeps as a convolution of side 1."""

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape can fill this weight."""
        return stored[2:] == (1, 1) and super().fits(stored[:2])

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [in, out]."""
        (stored,) = parts
        return super().from_stored([stored.reshape(stored.shape[:2])])


class Pointwise(Module):
    """A convolution of side 1, as the matrix product that it is: so it is quantized like one.

    Args:
        in_features: Last axis of x.
        out_features: Last axis of y.
        rows: Places of one image.
        bias: Whether one is added.
    """

    def __init__(self, in_features: int, out_features: int, *, rows: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = _PointwiseWeight(in_features, out_features, transposed=True, label=Label("linear", rows))
        self.bias = Weight(out_features) if bias else None

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., out] from [..., in]."""
        product = op.MatMul(x, self.weight)
        return product if self.bias is None else op.Add(product, self.bias)
