"""Attention in the forms that TensorRT's Attention takes.

- Scores that are capped (Gemma 2) are written out: "Setting softcap is not supported in TensorRT Attention."
- Values narrower than keys (SAM's towers, whose keys carry relative positions) get zeros behind each head's numbers,
  and what is made of those is cut off: "Key and Value must have the same shape". Written out, the scores of every pair
  of patches would be stored: 0.4 GB of a tower of 4,096 patches and 12 heads in float16.
- Beside a Scan (Qwen3.5) all are written out: with a loop and an attention in one network, the builder of TensorRT-RTX
  1.7.1 ends with a segmentation fault at the first profile whose runs have several tokens.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphs.half import HALF
from graphs.lowering.plain import write_attention_out
from graphs.store import add_initializer, make_node, replace_node
from graphs.wide_keys import has_wide_keys


def fit_attention(graph: ir.Graph) -> None:
    """Rewrite what TensorRT's Attention does not take, in place.

    Args:
        graph: Of the portable dialect.
    """
    attentions = [node for node in graph if not node.domain and node.op_type == "Attention"]
    has_loop = any(node.op_type == "Scan" for node in graph)
    write_attention_out(graph, [node for node in attentions if has_loop or "softcap" in node.attributes])
    for node in attentions:
        if node.graph is not graph:
            continue
        if has_wide_keys(node):
            _widen(graph, node, None)
        elif width := _added_width(node):
            _widen(graph, node, width)


def _added_width(node: ir.Node) -> int:
    """Return how many numbers of each head an attention's values lack beside its keys; 0 where heads are an axis."""
    if "kv_num_heads" not in node.attributes:
        return 0
    key, value = (_width(node.inputs[at]) for at in (1, 2))
    num_heads: int = node.attributes["kv_num_heads"].as_int()
    return (key - value) // num_heads


def _width(value: ir.Value | None) -> int:
    """Return the last size of a value, 0 where the graph does not say."""
    size = 0 if value is None or value.shape is None else value.shape[-1]
    return size if isinstance(size, int) else 0


def _widen(graph: ir.Graph, node: ir.Node, width: int | None) -> None:
    """Put zeros behind the values of each head before an attention, and cut off what it makes of them.

    Args:
        graph: Of the attention.
        node: The attention.
        width: How many zeros; None: as many as a run's keys are wider.
    """
    query, key, value, *more = node.inputs
    num, name = node.attributes["kv_num_heads"].as_int(), str(node.outputs[0].name)
    own = _width(value) // num

    def integers(*numbers: int) -> ir.Value:
        return add_initializer(graph, f"widened.{'_'.join(map(str, numbers))}", np.array(numbers, np.int64))

    dtype = np.float16 if value is not None and value.dtype == HALF else np.float32
    zero = add_initializer(graph, f"widened.{np.dtype(dtype).name}", np.zeros((), dtype))
    split = make_node("Reshape", [value, integers(0, 0, num, -1)], f"{name}.split")
    if width is None:
        size = make_node("Shape", [key], f"{name}.key_size", {"start": 2, "end": 3})
        of_head = make_node("Div", [size.outputs[0], integers(num)], f"{name}.key_head")
        lacking = make_node("Sub", [of_head.outputs[0], integers(own)], f"{name}.lacking")
        around = make_node("Shape", [split.outputs[0]], f"{name}.split_size", {"start": 0, "end": 3})
        shape = make_node("Concat", [around.outputs[0], lacking.outputs[0]], f"{name}.zeros_size", {"axis": 0})
        zeros = make_node("Expand", [zero, shape.outputs[0]], f"{name}.zeros")
        wide = make_node("Concat", [split.outputs[0], zeros.outputs[0]], f"{name}.wide", {"axis": 3})
        before = [size, of_head, lacking, around, shape, zeros]
    else:
        wide, before = make_node("Pad", [split.outputs[0], integers(0, width), zero, integers(3)], f"{name}.wide"), []
    merged = make_node("Reshape", [wide.outputs[0], integers(0, 0, -1)], f"{name}.values")
    attended = ir.node(
        "Attention",
        [query, key, merged.outputs[0], *more],
        dict(node.attributes),
        outputs=[ir.Value(name=f"{name}.attended")],
    )
    attended.name = f"{name}.attended"
    heads = make_node("Reshape", [attended.outputs[0], integers(0, 0, num, -1)], f"{name}.heads")
    kept = make_node("Slice", [heads.outputs[0], integers(0), integers(own), integers(3)], f"{name}.kept")
    joined = make_node("Reshape", [kept.outputs[0], integers(0, 0, -1)], f"{name}.joined")
    replace_node(graph, node, [split, *before, wide, merged, attended, heads, kept, joined])
