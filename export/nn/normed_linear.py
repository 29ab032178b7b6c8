"""A matrix whose batch norm is taken into it when it is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module, Weight
from graphs.labels import Label

_NORM = ("weight", "bias", "running_mean", "running_var")


class _Folded(Weight):
    """The matrix [in, out], or its biases [out].

    Args:
        shape: Of it.
        names: Where matrix and norm lie, as seen from the module around.
        eps: Of the norm.
        label: Of the matrix; None: biases.
    """

    def __init__(self, *shape: int, names: tuple[str, str], eps: float, label: Label | None) -> None:
        self._own = f"{names[0]}.{'bias' if label is None else 'weight'}"
        super().__init__(*shape, name=self._own, label=label)
        self._sources = (self._own, *(f"{names[1]}.{each}" for each in _NORM))
        self._eps = eps

    @property
    def source_keys(self) -> tuple[str, ...]:
        """The keys in the checkpoint, once the weight is part of a graph."""
        around = str(self.name).removesuffix(self._own)
        return tuple(around + source for source in self._sources)

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape is one of the parts."""
        wanted = tuple(int(size) for size in self.shape)[::-1]
        return stored in (wanted, wanted[:1])

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return the matrix times what the norm multiplies by, or the biases that are left."""
        own, gain, shift, mean, variance = (part.astype(np.float64) for part in parts)
        factor = gain / np.sqrt(variance + self._eps)
        folded = (own - mean) * factor + shift if own.ndim == 1 else (own * factor[:, None]).T
        return np.ascontiguousarray(folded, np.float32)


class NormedLinear(Module):
    """y = norm(x @ W + b), over the one vector of an image or text; the norm is BatchNorm1d's of training.

    Args:
        in_features: Last axis of x.
        out_features: Last axis of y.
        names: Where the checkpoint keeps the matrix and the norm, as seen from the module around.
        eps: Of the norm.
    """

    def __init__(self, in_features: int, out_features: int, names: tuple[str, str], eps: float) -> None:
        super().__init__("")
        label = Label("linear", 1)
        self.weight = _Folded(in_features, out_features, names=names, eps=eps, label=label)
        self.bias = _Folded(out_features, names=names, eps=eps, label=None)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, out] from [B, in]."""
        return op.Add(op.MatMul(x, self.weight), self.bias)
