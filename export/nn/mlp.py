"""The gated feed-forward layer of a decoder."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.linear import Linear, activation
from export.nn.module import Module


class GatedMLP(Module):
    """down(act(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(size, inner, rows=None, bias=bias)
        self.up_proj = Linear(size, inner, rows=None, bias=bias)
        self.down_proj = Linear(inner, size, rows=None, bias=bias)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., D] from [..., D]."""
        gate = activation(op, self.hidden_act, self.gate_proj(op, x))
        return self.down_proj(op, op.Mul(gate, self.up_proj(op, x)))
