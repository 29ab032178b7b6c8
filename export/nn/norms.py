"""Normalisations over the last axis."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import Dialect
from export.nn.module import Module, Weight


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * weight + bias."""

    def __init__(self, size: int, eps: float, *, name: str | None = None) -> None:
        super().__init__(name)
        self.weight = Weight(size)
        self.bias = Weight(size)
        self.eps = eps

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x normalised, same shape."""
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=self.eps)


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
