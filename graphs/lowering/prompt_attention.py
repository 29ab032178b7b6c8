"""Attention of many rows over a cache of codes, which it reads and writes as float32 numbers.

    q ── x key scale ────────────────────────────────────────────┐
    k ── / scale, round ─┬─ float ───────────────────────────────┤
                         └─ TensorScatter(past key) ─ present    ├─ GroupQueryAttention ── x value scale
    v ── / scale, round ─┬─ float ───────────────────────────────┤
                         └─ TensorScatter(past value) ─ present  │
    past key, past value ── rows that are there, float ──────────┘

ONNX Runtime's attention over codes turns every code into a number once per query row: 256 rows take five times as long
as over floats. Here each code is turned once. Scales are left out of keys and values and put to queries and sums, where
they are multiplied once. New keys and values are rounded first, so that a row reads the same numbers whether they came
in its own run or in an earlier one: no answer depends on how a prompt was cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundle.states import CacheScheme
from graphs.store import CONTRIB, add_initializer

Float32 = NDArray[np.float32]
FLOAT = ir.DataType.FLOAT
_INT64 = ir.DataType.INT64
_ROW_AXIS = 2
"""Of keys and values [B, K, S, C]."""


class Nodes:
    """Nodes in the making, not yet in a graph.

    Args:
        graph: Whose initializers hold constants.
        name: Before the name of every value.

    Attributes:
        made: In the order in which they can run.
    """

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self._graph = graph
        self._name = name
        self.made: list[ir.Node] = []

    def add(self, op_type: str, *inputs: ir.Value | None, domain: str = "", count: int = 1, **attributes: Any) -> Any:
        """Return the output of a new node, or the tuple of its outputs where there are several."""
        name = f"{self._name}.{len(self.made)}.{op_type}"
        outputs = [ir.Value(name=f"{name}.{at}") for at in range(count)]
        self.made.append(ir.node(op_type, inputs, attributes, domain=domain, outputs=outputs, name=name))
        return outputs[0] if count == 1 else tuple(outputs)

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Return an initializer of the graph; those of one name are one."""
        return add_initializer(self._graph, name, array)

    def numbers(self, *numbers: int) -> ir.Value:
        """Return whole numbers [n] int64."""
        return self.constant(f"numbers.{'.'.join(map(str, numbers))}", np.array(numbers, np.int64))


@dataclass(frozen=True)
class Rows:
    """What attention must know of the rows, the same for every layer of a length group.

    Attributes:
        last: [B] int32, the last row of each sequence, as GroupQueryAttention takes it.
        total: int32, the longest sequence's rows.
        starts: [B] int64, where new rows are written.
        end: [1] int64, `total` as a slice takes it.
    """

    last: ir.Value
    total: ir.Value
    starts: ir.Value
    end: ir.Value

    @classmethod
    def of(cls, nodes: Nodes, last: ir.Value, total: ir.Value, embeds: ir.Value) -> Rows:
        """Return what follows from GroupQueryAttention's own inputs and the run's [B, T, D]."""
        num_tokens = nodes.add("Shape", embeds, start=1, end=2)
        behind = nodes.add("Add", nodes.add("Cast", last, to=int(_INT64)), nodes.numbers(1))
        end = nodes.add("Reshape", nodes.add("Cast", total, to=int(_INT64)), nodes.numbers(1))
        return cls(last, total, nodes.add("Sub", behind, num_tokens), end)


@dataclass(frozen=True)
class Stored:
    """A layer's keys or values.

    Attributes:
        new: [B, T, K*C] of this run.
        past: The state.
        scales: [K, C].
    """

    new: ir.Value
    past: ir.Value
    scales: Float32

    def scale_value(self, nodes: Nodes) -> ir.Value:
        """Return the scales as a graph holds them: [K*C]."""
        return nodes.constant(f"{self.past.name}.scale", self.scales.ravel())


def attend(
    nodes: Nodes,
    query: ir.Value,
    key: Stored,
    value: Stored,
    rows: Rows,
    attributes: Mapping[str, Any],
    scheme: CacheScheme,
    bias: ir.Value | None = None,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return what was attended to [B, T, H*C], and both states with the new rows.

    Args:
        nodes: Get what is made.
        query: [B, T, H*C].
        key: And its state.
        value: The same.
        rows: Of the length group.
        attributes: Of the GroupQueryAttention.
        scheme: Of the codes.
        bias: Added to scores; None: nothing.
    """
    num_queries = attributes["num_heads"] // len(key.scales)
    new_key, present_key = _rounded(nodes, key, rows, scheme)
    new_value, present_value = _rounded(nodes, value, rows, scheme)
    past = [_numbers_of(nodes, stored, rows, scheme) for stored in (key, value)]
    scaled = nodes.add("Mul", query, _of_queries(nodes, key, num_queries))
    summed, *_ = nodes.add(
        "GroupQueryAttention",
        *(scaled, new_key, new_value, *past, rows.last, rows.total),
        *(() if bias is None else (None, None, None, bias)),
        domain=CONTRIB,
        count=3,
        **attributes,
    )
    return nodes.add("Mul", summed, _of_queries(nodes, value, num_queries)), present_key, present_value


def _of_queries(nodes: Nodes, stored: Stored, num_queries: int) -> ir.Value:
    """Return the scales as query heads meet them: [H*C]."""
    num_heads, channels = stored.scales.shape
    of_head = nodes.add("Reshape", stored.scale_value(nodes), nodes.numbers(num_heads, 1, channels))
    repeated = nodes.add("Expand", of_head, nodes.numbers(num_heads, num_queries, channels))
    return nodes.add("Reshape", repeated, nodes.numbers(-1))


def _rounded(nodes: Nodes, stored: Stored, rows: Rows, scheme: CacheScheme) -> tuple[ir.Value, ir.Value]:
    """Return new rows as whole numbers [B, T, K*C] float32, and the state that holds their codes."""
    quotients = nodes.add("Div", stored.new, stored.scale_value(nodes))
    one = nodes.constant("one", np.array(1, np.float32))
    if scheme == "int8":
        codes = nodes.add("QuantizeLinear", quotients, one, nodes.constant("code.zero", np.array(0, np.int8)))
        whole, stretched = nodes.add("Cast", codes, to=int(FLOAT)), codes
    else:
        least, most = (nodes.constant(f"code.{bound}", np.array(bound, np.float32)) for bound in (-8, 7))
        kept = nodes.add("Clip", quotients, least, most)
        codes = nodes.add("QuantizeLinear", kept, one, nodes.constant("code.eight", np.array(8, np.uint8)))
        whole = nodes.add("Sub", nodes.add("Cast", codes, to=int(FLOAT)), _eight(nodes))
        stretched = _packed(nodes, codes)
    num_heads, channels = stored.scales.shape
    sizes = nodes.numbers(0, 0, num_heads, channels if scheme == "int8" else channels // 2)
    by_head = nodes.add("Transpose", nodes.add("Reshape", stretched, sizes), perm=[0, 2, 1, 3])
    return whole, nodes.add("TensorScatter", stored.past, by_head, rows.starts, axis=_ROW_AXIS)


def _numbers_of(nodes: Nodes, stored: Stored, rows: Rows, scheme: CacheScheme) -> ir.Value:
    """Return the rows of a state that this run may read, as whole numbers [B, K, total, C] float32."""
    there = nodes.add("Slice", stored.past, nodes.numbers(0), rows.end, nodes.numbers(_ROW_AXIS))
    if scheme == "int8":
        return nodes.add("Cast", there, to=int(FLOAT))
    low = nodes.add("BitwiseAnd", there, nodes.constant("code.low", np.array(15, np.uint8)))
    high = nodes.add("BitShift", there, _four(nodes), direction="RIGHT")
    both = nodes.add("Concat", *(nodes.add("Unsqueeze", half, nodes.numbers(-1)) for half in (low, high)), axis=-1)
    codes = nodes.add("Reshape", both, nodes.numbers(0, 0, 0, stored.scales.shape[1]))
    return nodes.add("Sub", nodes.add("Cast", codes, to=int(FLOAT)), _eight(nodes))


def _packed(nodes: Nodes, codes: ir.Value) -> ir.Value:
    """Return bytes [B, T, K*C/2] of codes [B, T, K*C] that lie in halves of a byte each."""
    ends, last, two = nodes.numbers(1 << 31), nodes.numbers(-1), nodes.numbers(2)
    even, odd = (nodes.add("Slice", codes, nodes.numbers(start), ends, last, two) for start in (0, 1))
    return nodes.add("BitwiseOr", even, nodes.add("BitShift", odd, _four(nodes), direction="LEFT"))


def _four(nodes: Nodes) -> ir.Value:
    return nodes.constant("code.four", np.array(4, np.uint8))


def _eight(nodes: Nodes) -> ir.Value:
    return nodes.constant("code.eight.float", np.array(8, np.float32))
