"""Vectors made as long as 1 by operators that CUDA has, of which LpNormalization is none.

LpNormalization(x)  ->  x / max(ReduceL2(x), least)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphs.store import add_initializer, make_node, replace_node

_LEAST = np.float32(2.0**-24)
"""A length at least, and the least above 0 that float16 has: a vector of zeros stays one."""


def spell_unit_lengths(graph: ir.Graph) -> None:
    """Write LpNormalization by squares in three operators, in place."""
    for node in list(graph):
        if node.op_type == "LpNormalization" and not node.domain and _attribute(node, "p", 2) == 2:
            replace_node(graph, node, _spelled(graph, node))


def _spelled(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    name = str(node.outputs[0].name)
    axes = add_initializer(graph, f"{name}.axes", np.array([_attribute(node, "axis", -1)], np.int64))
    length = make_node("ReduceL2", [node.inputs[0], axes], f"{name}.length", {"keepdims": 1})
    least = add_initializer(graph, f"{name}.least", np.array(_LEAST))
    divisor = make_node("Max", [length.outputs[0], least], f"{name}.divisor")
    return [length, divisor, make_node("Div", [node.inputs[0], divisor.outputs[0]], f"{name}.unit")]


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
