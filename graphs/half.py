"""A graph of float32 turned into float16, with what overflows or needs digits left in float32.

Every operator gets inputs of one type; where a value is wanted in both, it is cast once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from graphs.store import make_node

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
_FLOATS = (HALF, SINGLE)
_ANGLES = ("Cos", "Sin")
"""What leads up to them keeps float32 too: a position of 4097 has no float16."""
_GIVES_NO_FLOAT = ("Shape", "ArgMax", "Equal", "LessOrEqual", "GreaterOrEqual", "Less", "Greater")
_LARGEST = float(np.finfo(np.float16).max)
_MASKED = _LARGEST / 2
"""Stands for a scalar beyond float16, which marks scores that must not count; a score added to it does not overflow."""


def halve_inside(graph: ir.Graph, kept: Collection[ir.Node]) -> None:
    """Turn a graph into float16, in place; its inputs and outputs stay float32.

    Args:
        graph: Of float32.
        kept: Nodes that keep it, beside what leads up to angles.
    """
    _Typing(graph, {*kept, *_with_ancestors(node for node in graph if node.op_type in _ANGLES)}).run(
        returns_single=True
    )


def halve(graph: ir.Graph, kept: Collection[ir.Node] = ()) -> None:
    """Turn a graph into float16, in place, its inputs and outputs with it.

    Args:
        graph: Of float32.
        kept: Nodes that keep it, beside what leads up to angles.
    """
    for value in graph.inputs:
        if value.dtype == SINGLE:
            value.type = ir.TensorType(HALF)
    _Typing(graph, {*kept, *_with_ancestors(node for node in graph if node.op_type in _ANGLES)}).run(
        returns_single=False
    )


def _with_ancestors(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.predecessors())
    return found


class _Typing:
    """Goes through a graph in order.

    Args:
        graph: Of float32.
        kept: Nodes that keep it.
    """

    def __init__(self, graph: ir.Graph, kept: set[ir.Node]) -> None:
        self._graph = graph
        self._kept = kept
        self._types: dict[ir.Value, ir.DataType] = {
            value: value.dtype for value in (*graph.inputs, *graph.initializers.values()) if value.dtype is not None
        }
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self, *, returns_single: bool) -> None:
        """Rewrite the graph in place; outputs are float32 again where that is asked."""
        for node in list(self._graph):
            self._type_node(node, SINGLE if node in self._kept else HALF)
        for at, value in enumerate(self._graph.outputs):
            if returns_single and self._types.get(value) == HALF:
                self._graph.outputs[at] = self._returned(value)

    def _type_node(self, node: ir.Node, wanted: ir.DataType) -> None:
        if node.op_type == "Cast":
            self._type_cast(node, wanted)
            return
        floats = [at for at, value in enumerate(node.inputs) if value is not None and self._types.get(value) in _FLOATS]
        for at in floats:
            value = node.inputs[at]
            if value is not None:
                node.replace_input_with(at, self._as(value, wanted, node))
        if floats and node.op_type not in _GIVES_NO_FLOAT:
            self._set_types(node, wanted)
        if node.op_type == "Attention" and node.domain == "" and wanted == HALF:
            node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", int(SINGLE))

    def _type_cast(self, node: ir.Node, wanted: ir.DataType) -> None:
        """Let a Cast to a float end at the wanted one."""
        target = ir.DataType(node.attributes["to"].as_int())
        if target in _FLOATS:
            node.attributes["to"] = ir.AttrInt64("to", int(wanted))
            self._set_types(node, wanted)

    def _set_types(self, node: ir.Node, found: ir.DataType) -> None:
        for value in node.outputs:
            self._types[value] = found
            value.type = ir.TensorType(found)

    def _as(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        """Return a value in the wanted type, cast once for all readers."""
        if self._types[value] == wanted:
            return value
        if (value, wanted) not in self._cast:
            if value.is_initializer():
                self._cast[value, wanted] = _halved(self._graph, value)
            else:
                self._cast[value, wanted] = self._inserted_cast(value, wanted, reader)
        return self._cast[value, wanted]

    def _inserted_cast(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        node = make_node("Cast", [value], f"{value.name}.{wanted.name.lower()}", {"to": int(wanted)})
        self._graph.insert_before(reader, node)
        self._set_types(node, wanted)
        return node.outputs[0]

    def _returned(self, value: ir.Value) -> ir.Value:
        """Return an output of the graph in float32, under its name and with its shape."""
        name = str(value.name)
        value.name = f"{name}.float16"
        node = make_node("Cast", [value], name, {"to": int(SINGLE)})
        node.name = f"{name}.returned"  # a node that made the output may have its name
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(SINGLE), value.shape
        self._graph.append(node)
        return node.outputs[0]


def _halved(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return an initializer with the numbers of another in float16, computed when they are read."""
    single = value.const_value
    if single is None:
        raise QuantizationError(f"{value.name} holds no numbers")
    peak = float(np.abs(single.numpy()).max(initial=0))
    if peak > _LARGEST and len(single.shape):
        raise QuantizationError(f"{value.name}: a weight of {peak:.3g} is beyond float16, which ends at {_LARGEST:.0f}")
    name = f"{value.name}.fp16"

    def half() -> ir.Tensor:
        numbers = single.numpy()
        if peak > _LARGEST:
            numbers = np.clip(numbers, -_MASKED, _MASKED)
        return ir.Tensor(numbers.astype(np.float16), name=name)

    tensor = ir.LazyTensor(half, HALF, single.shape, name=name)
    halved = ir.Value(name=name, type=ir.TensorType(HALF), shape=single.shape, const_value=tensor)
    graph.register_initializer(halved)
    return halved
