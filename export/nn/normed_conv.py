"""Convolutions whose batch norms are taken into their weights when these are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module, Weight

_STATISTICS = ("weight", "running_var", "bias", "running_mean")


class _Folded(Weight):
    """A convolution's matrix, or the biases that its norm leaves.

    Args:
        shape: Of it.
        name: In the graph, as seen from the module around.
        sources: Keys of the parts, as seen from there.
        eps: Of the norm.
    """

    def __init__(self, *shape: int, name: str, sources: tuple[str, ...], eps: float) -> None:
        super().__init__(*shape, name=name)
        self._own, self._sources, self._eps = name, sources, eps

    @property
    def source_keys(self) -> tuple[str, ...]:
        """The keys in the checkpoint, once the weight is part of a graph."""
        around = str(self.name).removesuffix(self._own)
        return tuple(around + source for source in self._sources)

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape is one of the parts."""
        wanted = tuple(int(size) for size in self.shape)
        return stored in (wanted, wanted[:1])

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return matrix, or biases, of a convolution that does both."""
        gain, variance, *rest = (part.astype(np.float64) for part in parts)
        scale = gain / np.sqrt(variance + self._eps)
        if len(rest) == 1:
            return np.ascontiguousarray(rest[0] * scale[:, None, None, None], np.float32)
        bias, mean = rest
        return np.asarray(bias - mean * scale, np.float32)


class NormedConv(Module):
    """A convolution without biases and the batch norm behind it (arXiv 1502.03167), as one convolution.

    Args:
        sizes: Channels in and out.
        kernel: Side of the kernel.
        names: Of convolution and norm in the checkpoint, as seen from the module around.
        eps: Of the norm.
        stride: Of the convolution.
        pads: [top, left, bottom, right]; as many as keep the size by default.
        is_depthwise: Every channel has a kernel of its own.
    """

    def __init__(
        self,
        sizes: tuple[int, int],
        kernel: int,
        names: tuple[str, str],
        eps: float,
        *,
        stride: int = 1,
        pads: Sequence[int] | None = None,
        is_depthwise: bool = False,
    ) -> None:
        super().__init__("")
        taken, given = sizes
        conv, norm = names
        of_norm = tuple(f"{norm}.{each}" for each in _STATISTICS)
        shape = (given, 1 if is_depthwise else taken, kernel, kernel)
        sources = (*of_norm[:2], f"{conv}.weight")
        self.weight = _Folded(*shape, name=f"{conv}.weight", sources=sources, eps=eps)
        self.bias = _Folded(given, name=f"{conv}.bias", sources=of_norm, eps=eps)
        self._pads = list(pads) if pads is not None else [(kernel - 1) // 2] * 4
        self._groups, self._stride, self._kernel = (taken if is_depthwise else 1), stride, kernel

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, out, height, width] from [I, in, height, width]."""
        return op.Conv(
            x,
            self.weight,
            self.bias,
            kernel_shape=[self._kernel] * 2,
            strides=[self._stride] * 2,
            pads=self._pads,
            group=self._groups,
        )
