"""x * sigmoid(x) as one operator.

x ─┬─ Sigmoid ─┐
   └───────────┴─ Mul   ->   x ── QuickGelu(alpha = 1)
"""

from __future__ import annotations

import onnx_ir as ir

from graphs.store import CONTRIB, make_node, replace_node


def join_silu(graph: ir.Graph) -> int:
    """Replace products of a value with its own sigmoid, in place, and return how many there were."""
    return sum(_join(graph, node) for node in list(graph) if node.op_type == "Mul" and not node.domain)


def _join(graph: ir.Graph, product: ir.Node) -> bool:
    for value, sigmoid in (tuple(product.inputs), tuple(product.inputs[::-1])):
        gate = None if sigmoid is None else sigmoid.producer()
        if gate is not None and gate.op_type == "Sigmoid" and gate.inputs[0] is value:
            name = f"{product.outputs[0].name}.silu"
            replace_node(graph, product, [make_node("QuickGelu", [value], name, {"alpha": 1.0}, CONTRIB)])
            return True
    return False
