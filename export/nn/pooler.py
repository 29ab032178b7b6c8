"""What becomes of a tower's first token where it stands for the whole (BERT, arXiv 1810.04805, section 3.1)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.linear import Linear
from export.nn.module import Module


class FirstToken(Module):
    """A matrix over the first token, and its hyperbolic tangent."""

    def __init__(self, size: int, name: str = "pooler") -> None:
        super().__init__(name)
        self.dense = Linear(size, size, rows=1)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, D] from [B, T, D]."""
        return op.Tanh(self.dense(op, op.Gather(x, 0, axis=1)))
