"""A cache of codes in the place of one of floats: what attention reads and writes, in every graph of a decoder.

A step reads its keys and values once for one row, which is quickest in GroupQueryAttention's own codes, with rotary
embedding inside and queries, keys and values packed. It gets a sink of no weight for every head: the operator's tiled
kernel (ONNX Runtime 1.31) takes no sink, turns a tile of values into floats before it sums them, and is 1.3 to 1.5
times slower for one row than the plain one. A prompt reads for many rows (`prompt_attention`). A graph that runs both
chooses by the number of its tokens:

    GroupQueryAttention(q, k, v, past)   ->   If(T = 1)
                                                ├─ GroupQueryAttention(packed, past codes, scales)
                                                └─ RotaryEmbedding, attention of many rows over codes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bundle import tensors
from bundle.manifest import Phase
from bundle.states import CacheScheme
from graphs.causal import BIAS_INPUT, make_causal
from graphs.lowering.packed_attention import pack_attention
from graphs.lowering.parallel_layers import ATTENTION, ROTARY
from graphs.lowering.prompt_attention import Float32, Nodes, Rows, Stored, attend
from graphs.lowering.rotary_in_attention import turn_inside_attention
from graphs.store import CONTRIB

_OPSET = 24
"""Of TensorScatter."""
_PAST_INPUTS, _LENGTHS_INPUT, _TOTAL_INPUT, _SINK_INPUT, _SCALE_INPUTS = (3, 4), 5, 6, 11, (12, 13)
"""Of a GroupQueryAttention: states, last rows, the longest sequence's rows, sinks, scales of keys and of values."""
_NO_WEIGHT = -1e30
"""Of a sink, among the scores: exp of it is 0."""
_WRITTEN_TWICE = (ROTARY, "Split")
"""In this order: a Split is copied once all that reads it in a branch is there."""
_BITS: Mapping[CacheScheme, int] = {"int8": 8, "int4": 4}
_DTYPES: Mapping[CacheScheme, ir.DataType] = {"int8": ir.DataType.INT8, "int4": ir.DataType.UINT8}


@dataclass(frozen=True)
class CodedCache:
    """How a decoder's cache is stored.

    Attributes:
        scheme: "int8" or "int4".
        scales: [K, C] by the name of a state's input.
    """

    scheme: CacheScheme
    scales: Mapping[str, Float32]


def store_codes(graph: ir.Graph, cache: CodedCache, max_positions: int, phase: Phase) -> int:
    """Let every attention of a decoder keep codes, in place, and return how many do.

    Args:
        graph: Of the contrib dialect, its layers joined; not yet lowered otherwise.
        cache: Scheme and scales.
        max_positions: Positions are below it.
        phase: When the graph runs.
    """
    graph.opset_imports[""] = max(graph.opset_imports[""], _OPSET)
    attentions = [node for node in graph if (node.domain, node.op_type) == (CONTRIB, ATTENTION)]
    layers = [_Layer.of(node, cache) for node in attentions]
    if phase != "prompt":
        make_causal(graph)  # what stays of them runs steps alone
        turn_inside_attention(graph, max_positions)
        pack_attention(graph)
    for layer in layers:
        layer.retype()
        if phase != "prompt":
            _keep_codes(graph, layer)
    if phase != "step":
        rows = _RowsOfGroups(graph)
        of_many = [_Many.of(graph, layer, rows) for layer in layers]  # of all, before one takes what others read
        for many in of_many:
            if phase == "prompt":
                many.replace(graph)
            else:
                many.choose(graph, rows.is_step)
    return len(layers)


@dataclass(frozen=True)
class _Layer:
    """One attention and what it read when the whole of it was one operator.

    Attributes:
        attention: The GroupQueryAttention.
        query: [B, T, H*C], turned.
        key: [B, T, K*C], turned, and its state.
        value: [B, T, K*C], and its state.
        bias: Added to scores; None: nothing.
        attributes: Of the GroupQueryAttention.
        scheme: Of the codes.
    """

    attention: ir.Node
    query: ir.Value
    key: Stored
    value: Stored
    bias: ir.Value | None
    attributes: dict[str, int | float]
    scheme: CacheScheme

    @classmethod
    def of(cls, attention: ir.Node, cache: CodedCache) -> _Layer:
        query, *new = (_present(attention, at) for at in range(3))
        past = [_present(attention, at) for at in _PAST_INPUTS]
        key, value = (
            Stored(now, before, cache.scales[str(before.name)]) for now, before in zip(new, past, strict=True)
        )
        attributes = {name: attribute.value for name, attribute in attention.attributes.items()}
        bias = attention.inputs[BIAS_INPUT] if len(attention.inputs) > BIAS_INPUT else None
        return cls(attention, query, key, value, bias, attributes, cache.scheme)

    @property
    def name(self) -> str:
        return str(self.attention.outputs[0].name)

    def retype(self) -> None:
        """Let states be codes, where they come in and where they go out."""
        for stored, given in zip((self.key, self.value), self.attention.outputs[1:], strict=True):
            channels = stored.scales.shape[-1]
            for value in (stored.past, given):
                before = list(value.shape or ())[:-1]
                value.type = ir.TensorType(_DTYPES[self.scheme])
                value.shape = ir.Shape([*before, channels if self.scheme == "int8" else channels // 2])


class _RowsOfGroups:
    """What attention of many rows must know of the rows, made once per length group.

    Args:
        graph: That gets the nodes.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        (self._embeds,) = (value for value in graph.inputs if value.name == tensors.INPUTS_EMBEDS)
        self._made: dict[ir.Value, Rows] = {}
        self._is_step: ir.Value | None = None

    def of(self, attention: ir.Node) -> Rows:
        """Return that of an attention."""
        last, total = (_present(attention, at) for at in (_LENGTHS_INPUT, _TOTAL_INPUT))
        if last not in self._made:
            nodes = Nodes(self._graph, f"{last.name}.rows")
            self._made[last] = Rows.of(nodes, last, total, self._embeds)
            self._graph.extend(nodes.made)
        return self._made[last]

    @property
    def is_step(self) -> ir.Value:
        """Whether a run has one token a sequence, [1] bool."""
        if self._is_step is None:
            nodes = Nodes(self._graph, "is_step")
            num_tokens = nodes.add("Shape", self._embeds, start=1, end=2)
            self._is_step = nodes.add("Equal", num_tokens, nodes.numbers(1))
            self._graph.extend(nodes.made)
        return self._is_step


def _keep_codes(graph: ir.Graph, layer: _Layer) -> None:
    """Let an attention read and write codes by itself."""
    attention, nodes = layer.attention, Nodes(graph, layer.name)
    attention.resize_inputs(_SCALE_INPUTS[-1] + 1)
    for at, stored in zip(_SCALE_INPUTS, (layer.key, layer.value), strict=True):
        attention.replace_input_with(at, stored.scale_value(nodes))
    num_heads = int(layer.attributes["num_heads"])
    sinks = nodes.constant(f"no_sink.{num_heads}", np.full(num_heads, _NO_WEIGHT, np.float32))
    attention.replace_input_with(_SINK_INPUT, sinks)
    for kind in ("k_quant_type", "v_quant_type"):
        attention.attributes[kind] = ir.AttrString(kind, "PER_CHANNEL")
    attention.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", _BITS[layer.scheme])


@dataclass(frozen=True)
class _Many:
    """What attends to many rows in the place of an attention.

    Attributes:
        attention: The GroupQueryAttention.
        nodes: Not yet in a graph.
        given: What the attention gives, made by these nodes.
    """

    attention: ir.Node
    nodes: list[ir.Node]
    given: tuple[ir.Value, ...]

    @classmethod
    def of(cls, graph: ir.Graph, layer: _Layer, rows: _RowsOfGroups) -> _Many:
        nodes = Nodes(graph, layer.name)
        stored, known = (layer.key, layer.value), rows.of(layer.attention)
        given = attend(nodes, layer.query, *stored, known, layer.attributes, layer.scheme, layer.bias)
        return cls(layer.attention, nodes.made, given)

    def replace(self, graph: ir.Graph) -> None:
        """Put the nodes in the place of the attention."""
        graph.insert_before(self.attention, self.nodes)
        _take_over(self.attention.outputs, self.given)
        graph.remove(self.attention, safe=True)

    def choose(self, graph: ir.Graph, is_step: ir.Value) -> None:
        """Let the attention run steps alone, and the nodes what is more."""
        name, attended = self.attention.outputs[0].name, list(self.attention.outputs)
        chosen = [ir.Value(name=f"{name}.{at}") for at in range(len(attended))]
        choice = ir.node("If", [is_step], outputs=chosen, name=f"{name}.choice")
        graph.insert_before(self.attention, choice)
        _take_over(attended, chosen)
        graph.remove(self.attention)
        for made, value in zip(self.given, chosen, strict=True):
            made.type, made.shape = value.type, value.shape
        bodies = {"then_branch": [self.attention], "else_branch": _moved_with(graph, self.nodes)}
        for (branch, body), results in zip(bodies.items(), (attended, self.given), strict=True):
            made_of = ir.Graph([], results, nodes=body, name=f"{name}.{branch}")
            choice.attributes[branch] = ir.AttrGraph(branch, made_of)


def _moved_with(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Return nodes in the order in which they run, with those of the graph that nothing else reads taken out of it.

    What turns and splits many rows for others as well, such as the queries that policies ask for, is written twice: a
    step asks for none, and would compute what a branch only might read.
    """
    moved = list(nodes)
    while True:
        outside = [node for node in _producers(moved) if node not in moved]
        alone = next((node for node in outside if _is_read_by(node, moved, graph)), None)
        twice = [node for op_type in _WRITTEN_TWICE for node in outside if node.op_type == op_type]
        if alone is not None:
            graph.remove(alone)
            moved.insert(0, alone)
        elif twice:
            moved.insert(0, _copied(twice[0], moved))
        else:
            return moved


def _producers(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Return what makes the values that nodes read."""
    read = (value for node in nodes for value in node.inputs if value is not None)
    return [node for value in read if (node := value.producer()) is not None]


def _is_read_by(node: ir.Node, readers: Sequence[ir.Node], graph: ir.Graph) -> bool:
    """Return whether nobody else reads what a node gives."""
    if any(value in graph.outputs for value in node.outputs):
        return False
    return all(user in readers for value in node.outputs for user, _ in value.uses())


def _copied(node: ir.Node, readers: Sequence[ir.Node]) -> ir.Node:
    """Return a copy of a node, which some of its readers read in its place."""
    outputs = [ir.Value(name=f"{value.name}.of_many", type=value.type, shape=value.shape) for value in node.outputs]
    copied = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        list(node.attributes.values()),
        outputs=outputs,
        name=f"{node.name}.of_many",
    )
    of_old = dict(zip(node.outputs, outputs, strict=True))
    for reader in readers:
        for at, value in enumerate(reader.inputs):
            if value in of_old:
                reader.replace_input_with(at, of_old[value])
    return copied


def _take_over(old: Sequence[ir.Value], new: Sequence[ir.Value]) -> None:
    """Give new values the names, types and readers of old ones."""
    for before, after in zip(old, new, strict=True):
        after.name, before.name = before.name, f"{before.name}.replaced"
        after.type, after.shape = before.type, before.shape
    ir.convenience.replace_all_uses_with(list(old), list(new), replace_graph_outputs=True)


def _present(node: ir.Node, at: int) -> ir.Value:
    value = node.inputs[at]
    if value is None:
        raise ValueError(f"{node.name} has no input {at}")
    return value
