"""Branches that are apart in training, summed to the one convolution that they are (RepVGG, arXiv 2101.03697)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module, Weight

_EPS = 1e-5
"""Of every batch norm."""
_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Branch:
    """A convolution, or the input itself, with what stands behind it.

    Attributes:
        kernel: Key of its kernel; None: the input itself.
        side: Of that kernel.
        bias: Key of the biases of a convolution without a norm.
        norm: Where its batch norm lies; None: it has none.
        scale: Key of a factor of each channel [C, 1, 1], behind all; None: it has none.
        sign: 1, or -1 where the branch is taken off.
    """

    kernel: str | None
    side: int = 1
    bias: str | None = None
    norm: str | None = None
    scale: str | None = None
    sign: int = 1

    @classmethod
    def normed(cls, name: str, side: int) -> Branch:
        """Return a convolution without biases and its norm, as timm's ConvNormAct names them."""
        return cls(f"{name}.conv.weight", side, norm=f"{name}.bn")

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its parts, in the order that `read` takes them in."""
        of_norm = () if self.norm is None else tuple(f"{self.norm}.{each}" for each in _NORM)
        return tuple(key for key in (self.kernel, self.bias, *of_norm, self.scale) if key is not None)

    def read(
        self, parts: Sequence[npt.NDArray[np.float32]], shape: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return kernel and biases as part of a convolution whose kernel has that shape."""
        left = [part.astype(np.float64) for part in parts]
        kernel = _identity(shape) if self.kernel is None else _padded(left.pop(0), shape)
        bias = np.zeros(shape[0]) if self.bias is None else left.pop(0)
        if self.norm is not None:
            gain, shift, mean, variance = (left.pop(0) for _ in _NORM)
            factor = gain / np.sqrt(variance + _EPS)
            kernel, bias = kernel * factor[:, None, None, None], (bias - mean) * factor + shift
        factor = self.sign * (np.ones(shape[0]) if self.scale is None else left.pop(0).reshape(-1))
        return kernel * factor[:, None, None, None], bias * factor


def _identity(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return the kernel that gives its input: one in the middle, in the channel's own place within its group."""
    kernel = np.zeros(shape)
    channels = np.arange(shape[0])
    kernel[channels, channels % shape[1], shape[2] // 2, shape[3] // 2] = 1
    return kernel


def _padded(kernel: npt.NDArray[np.float64], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return the kernel in the middle of a larger one."""
    around = [(whole - own) // 2 for whole, own in zip(shape[2:], kernel.shape[2:], strict=True)]
    return np.pad(kernel, ((0, 0), (0, 0), *((each, each) for each in around)))


class _Merged(Weight):
    """The kernel of a sum of branches, or its biases.

    Args:
        shape: Of the kernel.
        name: In the graph, as seen from the module around.
        branches: Whose keys are seen from there as well.
        is_bias: Biases are wanted.
    """

    def __init__(self, shape: tuple[int, ...], name: str, branches: Sequence[Branch], *, is_bias: bool) -> None:
        super().__init__(*(shape[:1] if is_bias else shape), name=name)
        self._kernel_shape, self._own, self._branches, self._is_bias = shape, name, tuple(branches), is_bias

    @property
    def source_keys(self) -> tuple[str, ...]:
        """The keys in the checkpoint, once the weight is part of a graph."""
        around = str(self.name).removesuffix(self._own)
        return tuple(around + key for branch in self._branches for key in branch.keys)

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape is one of the parts."""
        given, per_group, height, _ = self._kernel_shape
        kernels = {(given, per_group, min(branch.side, height), branch.side) for branch in self._branches}
        return stored in kernels | {(given,), (given, 1, 1)}

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return the sum of all branches' kernels, or of their biases."""
        left, total = list(parts), np.zeros(tuple(self.shape))
        for branch in self._branches:
            own, left = left[: len(branch.keys)], left[len(branch.keys) :]
            total = total + branch.read(own, self._kernel_shape)[self._is_bias]
        return np.asarray(total, np.float32)


class MergedConv(Module):
    """A convolution that keeps height and width or divides them by its stride, from branches of training.

    Args:
        sizes: Channels in and out.
        side: Of the kernel, odd.
        branches: What it is the sum of.
        stride: Of both axes.
        groups: As many channels apart from each other.
        is_flat: The kernel is a row [1, side], over texts as images of one row; else a square.
    """

    def __init__(
        self,
        sizes: tuple[int, int],
        side: int,
        branches: Sequence[Branch],
        *,
        stride: int = 1,
        groups: int = 1,
        is_flat: bool = False,
    ) -> None:
        super().__init__("")
        self._sides = [1 if is_flat else side, side]
        shape = (sizes[1], sizes[0] // groups, *self._sides)
        self.weight = _Merged(shape, "reparam_conv.weight", branches, is_bias=False)
        self.bias = _Merged(shape, "reparam_conv.bias", branches, is_bias=True)
        self._stride, self._groups = stride, groups

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, out, height, width] from [I, in, height, width]."""
        return op.Conv(
            x,
            self.weight,
            self.bias,
            kernel_shape=self._sides,
            strides=[self._stride] * 2,
            pads=[side // 2 for side in self._sides] * 2,
            group=self._groups,
        )
