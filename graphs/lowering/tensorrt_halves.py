"""A variant's graph for TensorRT: float16 around its codes, as its fused attention wants it, and float16 states.

TensorRT has a fused attention for float16 and none for float32, and multiplies weights of 4 bits by float16 alone on
some cards. Inputs and outputs stay float32; states are float16, for a Cast between a cache and the TensorScatter that
writes it is refused ("The cache tensor must be a network input").
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from bundle.states import State
from graphs.half import KEPT_OPERATORS, halve_inside
from graphs.labels import Label
from graphs.layers import find_linears
from graphs.store import drop_unused


def halve_for_tensorrt(model: ir.Model, states: Sequence[State]) -> None:
    """Turn what a graph computes in float32 into float16, in place; norms and routers keep float32.

    Args:
        model: Of the portable dialect, its weights in codes or not.
        states: Its states.
    """
    kept = {node for node in model.graph if node.op_type in KEPT_OPERATORS}
    for linear in find_linears(model.graph):
        label = Label.try_read(linear.weight)
        if label is not None and label.role in ("router", "gate"):
            kept.add(linear.node)
    turned = [name for state in states if state.is_halved for name in (state.input, state.output) if name]
    halve_inside(model.graph, kept, turned)
    drop_unused(model)
