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
KEPT_OPERATORS = ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization", "Softmax")
"""Sums of squares overflow float16 where channels are loud. The standard Attention sums in float32 by itself, and
TensorRT refuses its `softmax_precision`."""
_RECURRENCES = ("LinearAttention", "Scan")
"""Gated delta rules: what a state holds is a sum over a whole sequence, and exp of a decay enlarges its error."""
_FLOATS = (HALF, SINGLE)
_ANGLES = ("Cos", "Sin")
"""What leads up to them keeps float32 too: a position of 4097 has no float16. So does what leads up to a Floor: a place
between learned positions is a product of hundreds, divided."""
_GIVES_NO_FLOAT = ("Shape", "ArgMax", "Equal", "LessOrEqual", "GreaterOrEqual", "Less", "Greater", "QuantizeLinear")
_FILL = "ConstantOfShape"
_NUM_FLOAT_OUTPUTS = {"TopK": 1}
"""Of operators whose further outputs are no floats."""
_LARGEST = float(np.finfo(np.float16).max)
_MASKED = _LARGEST / 2
"""Stands for a scalar beyond float16, which marks scores that must not count; a score added to it does not overflow."""
_LEAST = np.float16(2.0**-24)
"""The smallest positive float16. Stands for scales, and for scalars that keep a divisor from 0, below it."""
_SCALE_INPUT = 1
"""Of QuantizeLinear and DequantizeLinear."""


def halve_inside(graph: ir.Graph, kept: Collection[ir.Node], turned: Collection[str] = ()) -> None:
    """Turn a graph into float16, in place; its inputs and outputs stay float32.

    Args:
        graph: Of float32, its weights in codes or not.
        kept: Nodes that keep it, beside what leads up to angles and recurrences.
        turned: Inputs and outputs that become float16 as well.
    """
    _turn(value for value in graph.inputs if value.name in turned)
    _Typing(graph, {*kept, *_precise(graph)}).run(
        singles={str(value.name) for value in graph.outputs if value.name not in turned}
    )


def halve(graph: ir.Graph, kept: Collection[ir.Node] = (), singles: Collection[str] = ()) -> None:
    """Turn a graph into float16, in place, its inputs and outputs with it.

    Args:
        graph: Of float32.
        kept: Nodes that keep it, beside what leads up to angles and recurrences.
        singles: Inputs and outputs that stay float32.
    """
    _turn(value for value in graph.inputs if value.dtype == SINGLE and value.name not in singles)
    _Typing(graph, {*kept, *_precise(graph)}).run(singles=singles)


def _precise(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes of a graph that keep float32 wherever they are: angles, places, recurrences and their decays."""
    places = [node for node in graph if node.op_type == "Floor"]
    parts = [after for node in places for after in node.successors() if after.op_type == "Sub"]  # what floor leaves
    ends = [*(node for node in graph if node.op_type in _ANGLES), *places, *parts]
    return _with_ancestors(ends) | _recurrences(graph)


def _recurrences(graph: ir.Graph) -> set[ir.Node]:
    """Return recurrences, and what makes their decays: from the sum under the Softplus on, which nothing else has."""
    ends = {node for node in graph if node.op_type in _RECURRENCES}
    starts = [node for node in graph if node.op_type == "Softplus"] if ends else []
    found = {*ends, *starts, *(before for node in starts for before in node.predecessors())}
    waiting = list(starts)
    while waiting:
        for after in waiting.pop().successors():
            if after not in found:
                found.add(after)
                waiting.append(after)
    return found


def _turn(values: Iterable[ir.Value]) -> None:
    for value in values:
        value.type = ir.TensorType(HALF)


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

    def run(self, singles: Collection[str]) -> None:
        """Rewrite the graph in place; the outputs of these names are float32 again."""
        for node in list(self._graph):
            self._type_node(node, SINGLE if node in self._kept else HALF)
        for at, value in enumerate(self._graph.outputs):
            if value.name in singles and self._types.get(value) == HALF:
                self._graph.outputs[at] = self._returned(value)

    def _type_node(self, node: ir.Node, wanted: ir.DataType) -> None:
        if node.op_type == "Cast":
            self._type_cast(node, wanted)
            return
        if node.op_type in ("Constant", _FILL):
            self._note_constant(node)
            return
        floats = [at for at, value in enumerate(node.inputs) if value is not None and self._types.get(value) in _FLOATS]
        for at in floats:
            value = node.inputs[at]
            if value is not None:
                node.replace_input_with(at, self._as(value, wanted, node))
        if floats and node.op_type not in _GIVES_NO_FLOAT:
            self._set_types(node, wanted)

    def _note_constant(self, node: ir.Node) -> None:
        """Keep a constant of the graph, or what is filled with one, as it is; whoever wants it in float16 casts it."""
        dtype = _fill(node) if node.op_type == _FILL else getattr(_constant(node.outputs[0]), "dtype", None)
        if dtype in _FLOATS:
            self._types[node.outputs[0]] = dtype

    def _type_cast(self, node: ir.Node, wanted: ir.DataType) -> None:
        """Let a Cast to a float end at the wanted one."""
        target = ir.DataType(node.attributes["to"].as_int())
        if target in _FLOATS:
            node.attributes["to"] = ir.AttrInt64("to", int(wanted))
            self._set_types(node, wanted)

    def _set_types(self, node: ir.Node, found: ir.DataType) -> None:
        for value in node.outputs[: _NUM_FLOAT_OUTPUTS.get(node.op_type)]:
            self._types[value] = found
            value.type = ir.TensorType(found)

    def _as(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        """Return a value in the wanted type, cast once for all readers."""
        if self._types[value] == wanted:
            return value
        if (value, wanted) not in self._cast:
            held = value.const_value if value.is_initializer() else _mark(value)
            if held is not None:
                is_scale = _is_scale(value, reader)
                self._cast[value, wanted] = _halved(self._graph, str(value.name), held, keeps_above_zero=is_scale)
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


def _is_scale(value: ir.Value, reader: ir.Node) -> bool:
    """Return whether numbers must stay above 0: as scales, which TensorRT refuses else, or a scalar under a divisor."""
    is_scale = reader.op_type in ("QuantizeLinear", "DequantizeLinear") and reader.inputs[_SCALE_INPUT] is value
    return is_scale or value.shape is None or len(value.shape) == 0


def _fill(node: ir.Node) -> ir.DataType:
    """Return the type of what a ConstantOfShape gives, and let a mark in it be one that float16 has."""
    given = node.attributes.get("value")
    if given is None:
        return SINGLE
    held = given.as_tensor()
    if held.dtype == SINGLE and np.abs(held.numpy()).max(initial=0) > _LARGEST:
        clipped = np.clip(held.numpy(), -_MASKED, _MASKED).astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(clipped))
    return held.dtype


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    """Return what a node Constant gives; None of anything else."""
    node = value.producer()
    is_constant = node is not None and node.op_type == "Constant"
    return ir.convenience.get_const_tensor(value) if is_constant else None


def _mark(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the single number of a Constant beyond float16; None of anything else.

    It marks scores that must not count, is multiplied by 0 where they shall, and 0 times infinity is no number.
    """
    held = _constant(value)
    if held is None or held.dtype != SINGLE or held.size != 1:
        return None
    return held if np.abs(held.numpy()).max() > _LARGEST else None


def _halved(graph: ir.Graph, label: str, single: ir.TensorProtocol, *, keeps_above_zero: bool) -> ir.Value:
    """Return an initializer with the numbers of a tensor in float16, computed when they are read."""
    peak = float(np.abs(single.numpy()).max(initial=0))
    if peak > _LARGEST and single.size > 1:
        raise QuantizationError(f"{label}: a weight of {peak:.3g} is beyond float16, which ends at {_LARGEST:.0f}")
    name = f"{label}.fp16"

    def half() -> ir.Tensor:
        numbers = single.numpy()
        if peak > _LARGEST:
            numbers = np.clip(numbers, -_MASKED, _MASKED)
        found = numbers.astype(np.float16)
        if keeps_above_zero:
            found = np.where((found == 0) & (numbers > 0), _LEAST, found)
        return ir.Tensor(np.asarray(found, np.float16), name=name)

    tensor = ir.LazyTensor(half, HALF, single.shape, name=name)
    halved = ir.Value(name=name, type=ir.TensorType(HALF), shape=single.shape, const_value=tensor)
    graph.register_initializer(halved)
    return halved
