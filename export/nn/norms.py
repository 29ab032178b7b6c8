"""Normalisations over the last axis."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import Dialect
from export.nn.module import Module, Weight


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * weight, plus a bias where there is one.

    Args:
        size: Of the last axis.
        eps: Added to the variance.
        bias: Whether there is one.
        name: Where the checkpoint keeps it; the attribute's name by default.
        order: In which the checkpoint's numbers stand in x; as they are by default.
    """

    def __init__(
        self,
        size: int,
        eps: float,
        *,
        bias: bool = True,
        name: str | None = None,
        order: npt.NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(name)
        self.weight = Weight(size, order=order)
        self.bias = Weight(size, order=order) if bias else None
        self.eps = eps

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x normalised, same shape."""
        bias = [] if self.bias is None else [self.bias]  # named and empty, TensorRT's parser refuses it
        return op.LayerNormalization(x, self.weight, *bias, axis=-1, epsilon=self.eps)


class BareRMSNorm(Module):
    """x / sqrt(mean(x^2) + eps), with no weight."""

    def __init__(self, size: int, eps: float, dialect: Dialect) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x normalised, same shape."""
        ones = op.initializer(ir.tensor(np.ones(self.size, np.float32)), "ones")
        return self.dialect.rms_norm(op, x, ones, self.eps)


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(
        self, size: int, eps: float, dialect: Dialect, *, weight: Weight | None = None, name: str | None = None
    ) -> None:
        super().__init__(name)
        self.weight = weight if weight is not None else Weight(size)
        self.eps = eps
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x normalised, same shape."""
        return self.dialect.rms_norm(op, x, self.weight, self.eps)


class Nothing(Module):
    """In the place of a norm where there is none."""

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x."""
        return x
