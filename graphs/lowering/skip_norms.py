"""A sum and the norm that reads it in one operator.

x ─┬─ Add ─┬─ RMSNormalization(g) ─ y          x ─┬─ SkipSimplifiedLayerNormalization(g) ─┬─ y
s ─┘       └─ sum                       ->     s ─┘                                        └─ sum
"""

from __future__ import annotations

import onnx_ir as ir

from graphs.store import CONTRIB

NORMS = ("RMSNormalization", "SimplifiedLayerNormalization")
SKIP_NORM = "SkipSimplifiedLayerNormalization"
_SUM_OUTPUT = 3
"""Of the operator's outputs; 1 and 2 are of training."""


def join_sums_and_norms(graph: ir.Graph) -> int:
    """Join sums of two activations with the norms that read them, in place, and return how many were joined."""
    return sum(_join(graph, node) for node in list(graph) if node.op_type in NORMS and not node.domain)


def _join(graph: ir.Graph, norm: ir.Node) -> bool:
    total, weight = norm.inputs[0], norm.inputs[1]
    add = None if total is None else total.producer()
    if add is None or total is None or weight is None or add.op_type != "Add" or not _is_over_last_axis(norm, weight):
        return False
    if any(value is None or not _is_activation(value) for value in add.inputs):
        return False
    outputs = [ir.Value(name=f"{norm.outputs[0].name}.skip"), ir.Value(name=""), ir.Value(name=""), ir.Value()]
    outputs[_SUM_OUTPUT].name = f"{total.name}.skip"
    epsilon = norm.attributes["epsilon"].as_float()
    joined = ir.node(
        SKIP_NORM,
        [*add.inputs, weight],
        {"epsilon": epsilon},
        domain=CONTRIB,
        outputs=outputs,
        name=f"{norm.name}.skip",
    )
    for old, new in ((norm.outputs[0], outputs[0]), (total, outputs[_SUM_OUTPUT])):
        new.type, new.shape = old.type, old.shape
    graph.insert_after(add, joined)
    ir.convenience.replace_all_uses_with([norm.outputs[0], total], [outputs[0], outputs[_SUM_OUTPUT]])
    return True


def _is_over_last_axis(norm: ir.Node, weight: ir.Value) -> bool:
    axis = norm.attributes.get("axis")
    return len(weight.shape or ()) == 1 and (axis is None or axis.as_int() == -1)


def _is_activation(value: ir.Value) -> bool:
    """Return whether a value is what nodes or callers give, not a bias: the operator adds two of one shape."""
    return not value.is_initializer()
