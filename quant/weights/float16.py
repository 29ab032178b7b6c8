"""fp16: weights and activations in float16 for CUDA and TensorRT, with what overflows or needs digits in float32.

Normalizations, softmax and the rotary angles keep float32, between explicit Casts, and so do layers that are not named.
Every operator gets inputs of one type, so that a strongly typed TensorRT network reads the graph as it is. Inputs and
outputs of the graph keep their types, the cache among them: it is cast whole at every step, which costs a pass over it.

A CPU has few float16 operators: ONNX Runtime computes the others in float32 between casts of its own, which is right
and slow, and which is how the graphs are tested here.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Linear, Table, find_linears, find_tables
from graphs.store import make_node
from quant.weights.weight_pass import WeightPass

BITS = 16

_HALF, _SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
_FLOATS = (_HALF, _SINGLE)
_KEPT = ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization", "Softmax", "Cos", "Sin")
_ANGLES = ("Cos", "Sin")
"""What leads up to them keeps float32 too: a position of 4097 has no float16."""
_GIVES_NO_FLOAT = ("Shape", "ArgMax", "Equal", "LessOrEqual", "GreaterOrEqual", "Less", "Greater")
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
_LARGEST = float(np.finfo(np.float16).max)
_MASKED = _LARGEST / 2
"""Stands for a scalar beyond float16, which marks scores that must not count; a score added to it does not overflow."""


class Float16(WeightPass):
    """Turns a graph into float16; the named layers' weights with it.

    Args:
        layers: Weight name to `Form(16)`, the only form there is.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse anything but 16 bits."""
        if form != Form(BITS):
            raise QuantizationError(f"{name}: fp16 stores {BITS} bits a weight, not {form}")

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's linear layers and embedding tables."""
        return {layer.name for layer in _layers(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Give every node inputs of its type, and set the types of what it returns."""
        if any(node.op_type in _QUANTIZED for node in graph):
            raise QuantizationError("fp16 is for graphs of float32 alone; this one holds int8 layers already")
        _Typing(graph, self._kept(graph)).run()

    def _kept(self, graph: ir.Graph) -> set[ir.Node]:
        """Return the nodes that keep float32."""
        unnamed = {layer.node for layer in _layers(graph) if layer.name not in self._forms}
        angles = _with_ancestors(node for node in graph if node.op_type in _ANGLES)
        return unnamed | angles | {node for node in graph if node.op_type in _KEPT}


def _layers(graph: ir.Graph) -> list[Linear | Table]:
    return [*find_linears(graph), *find_tables(graph)]


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

    def run(self) -> None:
        """Rewrite the graph in place."""
        for node in list(self._graph):
            self._type_node(node, _SINGLE if node in self._kept else _HALF)
        for at, value in enumerate(self._graph.outputs):
            if self._types.get(value) == _HALF:
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
        if node.op_type == "Attention" and node.domain == "" and wanted == _HALF:
            node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", int(_SINGLE))

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
        node = make_node("Cast", [value], name, {"to": int(_SINGLE)})
        node.name = f"{name}.returned"  # a node that made the output may have its name
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(_SINGLE), value.shape
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

    tensor = ir.LazyTensor(half, _HALF, single.shape, name=name)
    halved = ir.Value(name=name, type=ir.TensorType(_HALF), shape=single.shape, const_value=tensor)
    graph.register_initializer(halved)
    return halved
