"""Two matrices with an activation between (LLaVA-1.5)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.linear import Linear, activation
from export.nn.module import Module


class Projector(Module):
    """Two matrices with an activation between (LLaVA-1.5, arXiv 2310.03744).

    Args:
        in_size: Width of a feature.
        out_size: The decoder's.
        hidden_act: Of the activation.
        rows: Features of one image.
        bias: Whether both add one.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, in_size: int, out_size: int, hidden_act: str, *, rows: int, bias: bool, name: str) -> None:
        super().__init__(name)
        self.linear_1 = Linear(in_size, out_size, rows=rows, bias=bias)
        self.linear_2 = Linear(out_size, out_size, rows=rows, bias=bias)
        self.hidden_act = hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., out_size] from [..., in_size]."""
        return self.linear_2(op, activation(op, self.hidden_act, self.linear_1(op, x)))
