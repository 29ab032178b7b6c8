"""Attention that is causal again where a graph runs sampled tokens alone: no such token sees others behind it.

Export writes attention that looks forward as GroupQueryAttention without its own mask, with what is added to scores. A
step has no use for that: its tokens see what a causal mask shows, which the operator's faster kernels know.
"""

from __future__ import annotations

import onnx_ir as ir

from graphs.store import CONTRIB

_ATTENTION = "GroupQueryAttention"
BIAS_INPUT = 10
"""Of a GroupQueryAttention: what is added to scores."""
_MASKED_INPUTS = 7
"""Of a GroupQueryAttention with a mask of its own: states and lengths are the last."""
_WINDOW = "pocketvlm.window"
_FAR_ROWS = "pocketvlm.far_rows"


def note_window(attention: ir.Node, window: int) -> None:
    """Write down how many rows an attention's tokens see whose mask is an input: the operator takes no window then."""
    attention.metadata_props[_WINDOW] = str(window)


def note_far_rows(attention: ir.Node) -> None:
    """Write down that sampled tokens see rows before their window, which no mask of the operator's own shows."""
    attention.metadata_props[_FAR_ROWS] = "true"


def make_causal(graph: ir.Graph) -> int:
    """Let every attention of a graph mask scores by itself, in place, and return how many did not before.

    Args:
        graph: Of the contrib dialect; it runs sampled tokens alone.
    """
    return sum(_make_causal(node) for node in graph if (node.domain, node.op_type) == (CONTRIB, _ATTENTION))


def looks_ahead(attention: ir.Node) -> bool:
    """Return whether a GroupQueryAttention is without a mask of its own."""
    attribute = attention.attributes.get("causal")
    return attribute is not None and not attribute.as_int()


def _make_causal(attention: ir.Node) -> bool:
    if not looks_ahead(attention) or _FAR_ROWS in attention.metadata_props:
        return False
    attention.resize_inputs(_MASKED_INPUTS)
    del attention.attributes["causal"]
    if (window := attention.metadata_props.pop(_WINDOW, None)) is not None:
        attention.attributes["local_window_size"] = ir.AttrInt64("local_window_size", int(window))
    return True
