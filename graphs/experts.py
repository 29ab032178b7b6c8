"""The routed experts of a graph: `com.microsoft::MoE` nodes, each a layer of many matrices of which a token meets few.

How they are spelled stands here, for those who write them (export/nn/moe.py), rewrite them (quant/weights/qmoe.py) and
probe for them (export/probes.py): SwiGLU experts whose first matrices alternate the rows of gate and up, the k most
probable ones a token, each weighed by its share in the softmax over all of them or over the chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from graphs.layers import Float32
from graphs.store import CONTRIB

_PER_TOKEN, _NORMALISED = "k", "normalize_routing_weights"
_SWIGLU: Mapping[str, int | float | str] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}
"""Fusion 1 is one matrix for gate and up."""
GATE_ROWS, UP_ROWS = slice(0, None, 2), slice(1, None, 2)
"""Rows of that matrix under fusion 1: gate 0, up 0, gate 1, up 1, ..."""

_INPUT, _LOGITS, _FIRST, _SECOND = 0, 1, 2, 4
"""Places among the inputs of a MoE; 3 and 5 are biases, which these experts lack."""


@dataclass(frozen=True)
class Experts:
    """The routed experts of one layer.

    Attributes:
        node: The MoE.
        first: The initializer of gate and up, [E, 2I, D] float32, rows alternating.
        second: The initializer of down, [E, D, I] float32.
        num_experts: E.
        num_inputs: D.
        width: I, hidden units of one expert.
        per_token: Experts that a token meets.
        is_normalised: Each counts with its share among the chosen, which sum to 1; else with that among all.
    """

    node: ir.Node
    first: ir.Value
    second: ir.Value
    num_experts: int
    num_inputs: int
    width: int
    per_token: int
    is_normalised: bool

    @property
    def name(self) -> str:
        """Return what the checkpoint calls the experts, which names the layer in plans and reports."""
        return str(self.first.name).rpartition(".")[0]

    @property
    def input(self) -> ir.Value:
        """Return x [B, T, D]."""
        return _present(self.node, _INPUT)

    @property
    def logits(self) -> ir.Value:
        """Return the router's scores, [B * T, E]."""
        return _present(self.node, _LOGITS)

    def matrices(self) -> tuple[Float32, Float32]:
        """Return the numbers of `first` and `second`, mapped, not read."""
        return _tensor(self.first).numpy(), _tensor(self.second).numpy()

    @property
    def is_ternary(self) -> bool:
        """Return whether every matrix is -a, 0 and a, as 2 bits hold it exactly."""
        first, second = self.matrices()
        return all(
            _is_ternary(matrix) for stacked in (first[:, GATE_ROWS], first[:, UP_ROWS], second) for matrix in stacked
        )


def moe_attributes(per_token: int, *, is_normalised: bool) -> dict[str, int | float | str]:
    """Return the attributes of a MoE or QMoE; QMoE wants the shares as an input besides.

    Args:
        per_token: Experts that a token meets.
        is_normalised: As of `Experts` (ONNX Runtime 1.31, ContribOperators.md).
    """
    return {_PER_TOKEN: per_token, **_SWIGLU, _NORMALISED: int(is_normalised)}


def operands(x: ir.Value, logits: ir.Value, first: ir.Value, second: ir.Value) -> list[ir.Value | None]:
    """Return the inputs of a MoE.

    Args:
        x: [B, T, D].
        logits: The router's scores, [B * T, E]; of another rank than x.
        first: [E, 2I, D], rows alternating.
        second: [E, D, I].
    """
    places = {_INPUT: x, _LOGITS: logits, _FIRST: first, _SECOND: second}
    return [places.get(at) for at in range(max(places) + 1)]


def find_experts(graph: ir.Graph) -> list[Experts]:
    """Return the routed experts of a graph in node order; the portable dialect has only linear layers."""
    return [_experts(node) for node in graph if node.domain == CONTRIB and node.op_type == "MoE"]


def _is_ternary(matrix: Float32) -> bool:
    magnitudes = np.abs(matrix)
    return bool(np.isin(magnitudes, (0, magnitudes.max())).all())


def _experts(node: ir.Node) -> Experts:
    first, second = _present(node, _FIRST), _present(node, _SECOND)
    num_experts, num_inputs, width = (int(size) for size in _tensor(second).shape)
    per_token, is_normalised = (node.attributes[name].as_int() for name in (_PER_TOKEN, _NORMALISED))
    return Experts(node, first, second, num_experts, num_inputs, width, per_token, bool(is_normalised))


def _present(node: ir.Node, at: int) -> ir.Value:
    value = node.inputs[at]
    if value is None:
        raise QuantizationError(f"the {node.op_type} {node.name} lacks input {at}; export the checkpoint again")
    return value


def _tensor(weight: ir.Value) -> ir.TensorProtocol:
    if weight.const_value is None:
        raise QuantizationError(f"{weight.name} holds no numbers")
    return weight.const_value
