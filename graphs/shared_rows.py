"""Attention over rows that another layer wrote (docs/decisions/0056)."""

from __future__ import annotations

import onnx_ir as ir

from graphs.store import CONTRIB

_ATTENTION = "GroupQueryAttention"
_PAST_KEY_INPUT = 3


def readers_of_others(graph: ir.Graph) -> list[ir.Node]:
    """Return the attentions of a decoder (contrib dialect) whose past is no state, but what another layer gives."""
    attentions = (node for node in graph if (node.domain, node.op_type) == (CONTRIB, _ATTENTION))
    pasts = ((node, node.inputs[_PAST_KEY_INPUT]) for node in attentions)
    return [node for node, past in pasts if past is not None and not past.is_graph_input()]
