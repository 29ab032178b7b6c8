"""Queries, keys and values handed to attention as one tensor.

x ── q+k+v ── Split ─┬─ q ─┐
                     ├─ k ─┼─ GroupQueryAttention   ->   x ── q+k+v ── GroupQueryAttention(packed, -, -)
                     └─ v ─┘
"""

from __future__ import annotations

import onnx_ir as ir

from graphs.lowering.parallel_layers import ATTENTION
from graphs.store import CONTRIB


def pack_attention(graph: ir.Graph) -> int:
    """Let attention read what a Split took apart for it, in place, and return how many do."""
    return sum(_pack(node) for node in graph if (node.domain, node.op_type) == (CONTRIB, ATTENTION))


def _pack(attention: ir.Node) -> bool:
    """Pack one attention; its Split is left for whoever drops what nothing reads."""
    parts = list(attention.inputs[:3])
    split = None if parts[0] is None else parts[0].producer()
    if split is None or split.op_type != "Split" or list(split.outputs) != parts:
        return False
    attention.replace_input_with(0, split.inputs[0])
    for at in (1, 2):
        attention.replace_input_with(at, None)
    return True
