"""x * sigmoid(a x) as one operator: SiLU, a being 1, and CLIP's quick GELU, a being 1.702.

x ─┬─ (Mul a) ─ Sigmoid ─┐
   └─────────────────────┴─ Mul   ->   x ── QuickGelu(alpha = a)
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
        if value is None or gate is None or gate.op_type != "Sigmoid":
            continue
        alpha = _try_factor(gate.inputs[0], value)
        if alpha is not None:
            name = f"{product.outputs[0].name}.silu"
            replace_node(graph, product, [make_node("QuickGelu", [value], name, {"alpha": alpha}, CONTRIB)])
            return True
    return False


def _try_factor(scaled: ir.Value | None, value: ir.Value) -> float | None:
    """Return a where `scaled` is a times a value, None where it is something else."""
    if scaled is value:
        return 1.0
    product = None if scaled is None else scaled.producer()
    if product is None or product.op_type != "Mul" or product.domain or value not in product.inputs:
        return None
    factors = [each for each in product.inputs if each is not value]
    constant = ir.convenience.get_const_tensor(factors[0]) if len(factors) == 1 and factors[0] is not None else None
    return float(constant.numpy().item()) if constant is not None and constant.size == 1 else None
