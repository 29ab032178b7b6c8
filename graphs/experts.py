"""The routed experts of a graph: `com.microsoft::MoE` nodes, each a layer of many matrices of which a token meets one.

Export writes them (export/nn/moe.py): SwiGLU experts whose first matrices alternate the rows of gate and up, one
expert a token, weighed by its share in the softmax over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from graphs.layers import Float32, find_linears
from graphs.store import CONTRIB


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
        router: Name of the linear layer whose outputs choose the expert; its K x N is D x E. It stays float32: it is
            a thousandth of the experts' bytes, and an error in it sends tokens to other experts.
    """

    node: ir.Node
    first: ir.Value
    second: ir.Value
    num_experts: int
    num_inputs: int
    width: int
    router: str | None

    @property
    def name(self) -> str:
        """Return what the checkpoint calls the experts, which names the layer in plans and reports."""
        return str(self.first.name).rpartition(".")[0]

    @property
    def input(self) -> ir.Value:
        """Return x [B, T, D]."""
        return _present(self.node, 0)

    @property
    def logits(self) -> ir.Value:
        """Return the router's scores, [B * T, E]."""
        return _present(self.node, 1)

    def matrices(self) -> tuple[Float32, Float32]:
        """Return the numbers of `first` and `second`, mapped, not read."""
        return _read(self.first), _read(self.second)

    @property
    def is_ternary(self) -> bool:
        """Return whether every matrix is -a, 0 and a, as 2 bits hold it exactly."""
        return all(_is_ternary(matrix) for stacked in self.matrices() for matrix in _separate(stacked))


def find_experts(graph: ir.Graph) -> list[Experts]:
    """Return the routed experts of a graph in node order; the portable dialect has only linear layers."""
    routers = {linear.node: linear.name for linear in find_linears(graph)}
    return [_experts(node, routers) for node in graph if node.domain == CONTRIB and node.op_type == "MoE"]


def _separate(stacked: Float32) -> list[Float32]:
    """Return the checkpoint's matrices: those that alternate in the rows may have different scales."""
    return [rows for matrix in stacked for rows in (matrix[0::2], matrix[1::2])]


def _is_ternary(matrix: Float32) -> bool:
    magnitudes = np.abs(matrix)
    return bool(np.isin(magnitudes, (0, magnitudes.max())).all())


def _experts(node: ir.Node, routers: dict[ir.Node, str]) -> Experts:
    first, second = _present(node, 2), _present(node, 4)
    num_experts, num_inputs, width = (int(size) for size in _read(second).shape)
    return Experts(node, first, second, num_experts, num_inputs, width, _router(node, routers))


def _router(node: ir.Node, routers: dict[ir.Node, str]) -> str | None:
    """Return the name of the linear layer behind the router's scores, through the Reshape that flattens them."""
    producer = _present(node, 1).producer()
    if producer is not None and producer.op_type == "Reshape":
        producer = _present(producer, 0).producer()
    return None if producer is None else routers.get(producer)


def _present(node: ir.Node, at: int) -> ir.Value:
    value = node.inputs[at]
    if value is None:
        raise QuantizationError(f"the {node.op_type} {node.name} lacks input {at}; export the checkpoint again")
    return value


def _read(weight: ir.Value) -> Float32:
    if weight.const_value is None:
        raise QuantizationError(f"{weight.name} holds no numbers")
    array: Float32 = weight.const_value.numpy()
    return array
