"""The feed-forward layers of decoders, and of some towers."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.linear import Linear, activation
from export.nn.module import Module


class GatedSizes(Protocol):
    """What a gated feed-forward reads of a config."""

    @property
    def hidden_size(self) -> int:
        """Width in and out."""

    @property
    def intermediate_size(self) -> int:
        """Width inside."""

    @property
    def hidden_act(self) -> str:
        """Of the gate."""

    @property
    def mlp_bias(self) -> bool:
        """Whether its three matrices have biases."""


class GatedMLP(Module):
    """down(act(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202).

    Args:
        config: Sizes.
        rows: That meet it for one image; None in a decoder.
        in_size: Width in, where that is another than the width out.
        name: Where the checkpoint keeps it; the attribute's name by default.
    """

    def __init__(
        self, config: GatedSizes, *, rows: int | None = None, in_size: int | None = None, name: str | None = None
    ) -> None:
        super().__init__(name)
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(in_size or size, inner, rows=rows, bias=bias)
        self.up_proj = Linear(in_size or size, inner, rows=rows, bias=bias)
        self.down_proj = Linear(inner, size, rows=rows, bias=bias)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., D] from [..., D]."""
        gate = activation(op, self.hidden_act, self.gate_proj(op, x))
        return self.down_proj(op, op.Mul(gate, self.up_proj(op, x)))


class FeedForward(Module):
    """fc2(act(fc1(x))), with biases (Vaswani et al., arXiv 1706.03762, section 3.3).

    Args:
        config: Sizes.
        rows: That meet it for one image; None in a decoder.
        name: Where the checkpoint keeps it; the attribute's name by default.
    """

    def __init__(self, config: GatedSizes, *, rows: int | None = None, name: str | None = None) -> None:
        super().__init__(name)
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, rows=rows)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, rows=rows)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., D] from [..., D]."""
        return self.fc2(op, activation(op, self.hidden_act, self.fc1(op, x)))
