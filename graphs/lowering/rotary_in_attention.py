"""Rotary embedding inside GroupQueryAttention, by tables of cosines and sines.

    q ── RotaryEmbedding(cos, sin) ─┐
    k ── RotaryEmbedding(cos, sin) ─┼─ GroupQueryAttention   ->   q, k, v ── GroupQueryAttention(tables, position_ids)
    v ──────────────────────────────┘

The operator takes `position_ids` as its tenth input, so that the logical position stays apart from the physical row. It
turns whole heads of halves by one angle for each position. What it cannot turn so stays outside: heads that are turned
in part or by neighbours, positions of several axes, head sizes that are no multiple of 16, queries and keys of unlike
angles, and anything that stands between the turning and the attention, such as norms of queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphs.lowering.joining import are_equal
from graphs.lowering.parallel_layers import ATTENTION, ROTARY
from graphs.store import CONTRIB, add_initializer

_HEAD_MULTIPLE = 16
"""Of head sizes with rotary embedding inside (ONNX Runtime 1.31, group_query_attention_helper)."""
_TABLE_INPUTS = 7
"""Where cos, sin and positions stand among the inputs of a GroupQueryAttention."""
_FLOAT_BYTES = 4
MOST_TABLE_BYTES = 1 << 26
"""Of one table in float32. 131,072 positions of heads of 128 take half of it."""


@dataclass(frozen=True)
class _Angles:
    """Where angles come from.

    Attributes:
        positions: The graph's input, [B, T] int64.
        frequencies: [C/2] float32.
    """

    positions: ir.Value
    frequencies: ir.Value


def table_bytes(max_positions: int, head_size: int) -> int:
    """Return the bytes of both tables; 0 where heads of that size are turned outside."""
    of_one = max_positions * head_size // 2 * _FLOAT_BYTES
    return 0 if head_size % _HEAD_MULTIPLE or of_one > MOST_TABLE_BYTES else 2 * of_one


def turn_inside_attention(graph: ir.Graph, max_positions: int) -> int:
    """Move rotary embeddings into attention, in place, and return into how many.

    Args:
        graph: A decoder's.
        max_positions: Positions are below it.
    """
    return sum(
        _turn_inside(graph, node, max_positions)
        for node in list(graph)
        if (node.domain, node.op_type) == (CONTRIB, ATTENTION) and not _flag(node, "do_rotary")
    )


def _turn_inside(graph: ir.Graph, attention: ir.Node, max_positions: int) -> bool:
    turned = [_rotary(value) for value in attention.inputs[:2]]
    query, key = turned
    if query is None or key is None or len(attention.inputs) > _TABLE_INPUTS:
        return False
    if not all(are_equal(a, b) for a, b in zip(query.inputs[1:], key.inputs[1:], strict=True)):
        return False
    angles = _angles(query)
    if angles is None or not _takes(angles, max_positions):
        return False
    for at, node in enumerate((query, key)):
        attention.replace_input_with(at, node.inputs[0])
    attention.resize_inputs(_TABLE_INPUTS + 3)
    for at, value in enumerate((*_tables(graph, angles, max_positions), angles.positions)):
        attention.replace_input_with(_TABLE_INPUTS + at, value)
    attention.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)
    return True


def _rotary(value: ir.Value | None) -> ir.Node | None:
    """Return the RotaryEmbedding of whole heads by halves that made a value; None where another node did."""
    node = None if value is None else value.producer()
    if node is None or (node.domain, node.op_type, len(node.inputs)) != ("", ROTARY, 3):
        return None
    return None if _flag(node, "interleaved") or _flag(node, "rotary_embedding_dim") else node


def _angles(rotary: ir.Node) -> _Angles | None:
    """Return what the cosines and sines of a RotaryEmbedding are made of; None where it is another pattern."""
    cos, sin = (_producer_of(value, op_type) for value, op_type in zip(rotary.inputs[1:], ("Cos", "Sin"), strict=True))
    if cos is None or sin is None or not are_equal(cos.inputs[0], sin.inputs[0]):
        return None
    product = _producer_of(cos.inputs[0], "Mul")
    places = None if product is None else _producer_of(product.inputs[0], "Unsqueeze")
    cast = None if places is None else _producer_of(places.inputs[0], "Cast")
    if product is None or cast is None or product.inputs[1] is None or cast.inputs[0] is None:
        return None
    return _Angles(cast.inputs[0], product.inputs[1])


def _takes(angles: _Angles, max_positions: int) -> bool:
    """Return whether the operator can turn by such angles."""
    frequencies = angles.frequencies.const_value
    if frequencies is None or len(frequencies.shape) != 1:
        return False
    is_plain = angles.positions.is_graph_input() and len(angles.positions.shape or ()) == 2
    return is_plain and table_bytes(max_positions, 2 * int(frequencies.shape[0])) > 0


def _tables(graph: ir.Graph, angles: _Angles, max_positions: int) -> tuple[ir.Value, ir.Value]:
    """Return cosines and sines [max_positions, C/2], rounded as the graph would round them."""
    name = str(angles.frequencies.name)
    turned = np.arange(max_positions, dtype=np.float32)[:, None] * _numbers(angles.frequencies)
    return (
        add_initializer(graph, f"{name}.cos", np.cos(turned)),
        add_initializer(graph, f"{name}.sin", np.sin(turned)),
    )


def _numbers(value: ir.Value) -> NDArray[np.float32]:
    if value.const_value is None:
        raise ValueError(f"{value.name} holds no numbers")
    return np.asarray(value.const_value.numpy(), np.float32)


def _producer_of(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _flag(node: ir.Node, name: str) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else 0
