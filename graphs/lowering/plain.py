"""A portable graph in the operators of opset 20, for TensorRT before 10.15 (JetPack 6 has 10.3).

Attention, TensorScatter, RotaryEmbedding and RMSNormalization are written out. The price: the cache is copied at every
step, for ScatterElements writes into nothing that is there, and attention is as fused as an old builder's patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from bundle.errors import BundleFormatError
from graphs.half import HALF, SINGLE
from graphs.store import add_initializer, drop_unused, replace_node

OPSET = 20
_IR_VERSION = 9
_LOW = {SINGLE: -1e30, HALF: -3e4}
"""Added to the score of a row that is not seen: exp gives 0."""


def write_plainly(model: ir.Model) -> None:
    """Write out what opset 20 lacks, in place.

    Args:
        model: Of the portable dialect, float32, float16 or int8.

    Raises:
        BundleFormatError: It holds weights of 4 bits, whose blocks opset 20 lacks, or a node in a form unknown here.
    """
    _Plain(model.graph).run()
    drop_unused(model)
    model.graph.opset_imports[""] = OPSET
    model.ir_version = _IR_VERSION


def write_attention_out(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Write attentions in simpler operators, in place; the rest stays.

    Args:
        graph: Of the portable dialect.
        nodes: Its Attention nodes that are written out.

    Raises:
        BundleFormatError: One is in a form unknown here.
    """
    _Plain(graph).write_attentions(nodes)


class _Plain:
    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._nodes: list[ir.Node] = []
        self._count = 0
        self._places: dict[ir.Value, ir.Value] = {}
        self._biases: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        """Rewrite the graph in place."""
        written = {
            "Attention": self._attention,
            "TensorScatter": self._scatter,
            "RotaryEmbedding": self._rotary,
            "RMSNormalization": self._norm,
        }
        for node in list(self._graph):
            if "block_size" in node.attributes:
                raise BundleFormatError(
                    f"{node.name}: weights of 4 bits in blocks want opset 21, TensorRT before 10.15 reads {OPSET}; "
                    "take int8, int8-static or fp16"
                )
            if not node.domain and node.op_type in written:
                self._nodes = []
                written[node.op_type](node)
                replace_node(self._graph, node, self._nodes)

    def write_attentions(self, nodes: Sequence[ir.Node]) -> None:
        """Rewrite some attentions in place."""
        for node in nodes:
            self._nodes = []
            self._attention(node)
            replace_node(self._graph, node, self._nodes)

    def _op(
        self, op_type: str, inputs: Sequence[ir.Value], like: ir.Value | None = None, **attributes: Any
    ) -> ir.Value:
        """Return the output of a new node, of the type of `like`."""
        self._count += 1
        node = ir.node(op_type, inputs, attributes, outputs=[ir.Value(name=f"plain.{self._count}")])
        node.name = node.outputs[0].name
        if like is not None and like.dtype is not None:
            node.outputs[0].type = ir.TensorType(like.dtype)
        self._nodes.append(node)
        return node.outputs[0]

    def _integers(self, *numbers: int) -> ir.Value:
        name = f"plain.integers.{'_'.join(map(str, numbers))}"
        return add_initializer(self._graph, name, np.array(numbers, np.int64))

    def _integer(self, number: int) -> ir.Value:
        return add_initializer(self._graph, f"plain.integer.{number}", np.array(number, np.int64))

    def _float(self, number: float, like: ir.Value) -> ir.Value:
        dtype = _dtype(like)
        array = np.array(number, np.float16 if dtype == HALF else np.float32)
        return add_initializer(self._graph, f"plain.{dtype.name.lower()}.{number!r}", array)

    def _norm(self, node: ir.Node) -> None:
        """Write x / sqrt(mean(x^2) + eps) * weight."""
        x, weight = _inputs(node, 2)
        eps = self._float(node.attributes["epsilon"].as_float(), weight)
        squares = self._op("Mul", [x, x])
        mean = self._op("ReduceMean", [squares, self._integers(-1)], keepdims=1)
        root = self._op("Sqrt", [self._op("Add", [mean, eps])])
        self._op("Mul", [self._op("Div", [x, root]), weight], like=weight)

    def _rotary(self, node: ir.Node) -> None:
        """Write (lo cos - hi sin, hi cos + lo sin) for the halves lo and hi of every head."""
        if set(node.attributes) - {"num_heads"}:
            raise BundleFormatError(f"{node.name} turns {', '.join(node.attributes)}; known are whole heads in halves")
        x, cos, sin = _inputs(node, 3)
        heads = self._op("Reshape", [x, self._integers(0, 0, node.attributes["num_heads"].as_int(), 2, -1)])
        low, high = (self._op("Gather", [heads, self._integer(half)], axis=3) for half in (0, 1))
        wide_cos, wide_sin = (self._op("Unsqueeze", [angles, self._integers(2)]) for angles in (cos, sin))
        turned_low = self._op("Sub", [self._op("Mul", [low, wide_cos]), self._op("Mul", [high, wide_sin])])
        turned_high = self._op("Add", [self._op("Mul", [high, wide_cos]), self._op("Mul", [low, wide_sin])])
        both = self._op("Concat", [turned_low, turned_high], axis=-1)
        self._op("Reshape", [both, self._integers(0, 0, -1)], like=x)

    def _scatter(self, node: ir.Node) -> None:
        """Write rows [B, K, T, C] into a cache [B, K, S, C] from each sequence's first row [B] on."""
        past, rows, first = _inputs(node, 3)
        if first not in self._places:
            size = self._op("Squeeze", [self._op("Shape", [rows], start=2, end=3), self._integers(0)])
            span = self._op("Range", [self._integer(0), size, self._integer(1)])
            places = self._op("Add", [self._op("Unsqueeze", [first, self._integers(1)]), span])
            self._places[first] = self._op("Unsqueeze", [places, self._integers(1, 3)])
        indices = self._op("Expand", [self._places[first], self._op("Shape", [rows])])
        self._op("ScatterElements", [past, indices, rows], like=past, axis=2)

    def _attention(self, node: ir.Node) -> None:
        """Write softmax(scale q k + mask) v; of scores s that are capped, c tanh(s / c) before the mask."""
        if unknown := set(node.attributes) - {"scale", "softcap", "q_num_heads", "kv_num_heads"}:
            raise BundleFormatError(f"{node.name} has {', '.join(unknown)}, which is not written out. Export again.")
        scale = node.attributes["scale"].as_float()
        if "q_num_heads" in node.attributes:
            self._attention_of_rows(node, scale)
        else:
            self._attention_of_cache(node, scale)

    def _attention_of_rows(self, node: ir.Node, scale: float) -> None:
        """Write an encoder's attention over [B, T, H*C], its mask added to scores."""
        split = self._integers(0, 0, node.attributes["q_num_heads"].as_int(), -1)
        query, key, value = (
            self._op("Transpose", [self._op("Reshape", [each, split])], perm=[0, 2, 1, 3]) for each in _inputs(node, 3)
        )
        turned = self._op("Transpose", [key], perm=[0, 1, 3, 2])
        source = _inputs(node, 1)[0]
        scaled = self._op("Mul", [query, self._float(scale, source)])
        scores = self._capped(node, self._op("MatMul", [scaled, turned], like=source))
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            scores = self._op("Add", [scores, node.inputs[3]])
        mixed = self._op("MatMul", [self._op("Softmax", [scores], axis=-1), value])
        merged = self._op("Transpose", [mixed], perm=[0, 2, 1, 3])
        self._op("Reshape", [merged, self._integers(0, 0, -1)], like=source)

    def _attention_of_cache(self, node: ir.Node, scale: float) -> None:
        """Write grouped attention: [B, K, G, T, C] over [B, K, 1, S, C], rows that are not seen made very low."""
        query, key, value, is_seen = _inputs(node, 4)
        num_kv = None if key.shape is None else key.shape[1]
        if not isinstance(num_kv, int):
            raise BundleFormatError(f"{node.name}: its cache has no number of heads. Export the checkpoint again.")
        sizes = self._op("Shape", [query])
        first, last = (self._op("Slice", [sizes, *map(self._integers, ends)]) for ends in ((0, 1), (2, 4)))
        grouped = self._op("Concat", [first, self._integers(num_kv, -1), last], axis=0)
        scaled = self._op("Mul", [query, self._float(scale, query)])
        turned = self._op("Unsqueeze", [self._op("Transpose", [key], perm=[0, 1, 3, 2]), self._integers(2)])
        scores = self._capped(node, self._op("MatMul", [self._op("Reshape", [scaled, grouped]), turned], like=query))
        shares = self._op("Softmax", [self._op("Add", [scores, self._bias(is_seen, query)])], axis=-1)
        mixed = self._op("MatMul", [shares, self._op("Unsqueeze", [value, self._integers(2)])])
        self._op("Reshape", [mixed, sizes], like=query)

    def _capped(self, node: ir.Node, scores: ir.Value) -> ir.Value:
        """Return scores s as c tanh(s / c) where an attention caps them, else as they are."""
        cap = node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0
        if not cap:
            return scores
        limit = self._float(cap, scores)
        return self._op("Mul", [self._op("Tanh", [self._op("Div", [scores, limit])]), limit])

    def _bias(self, is_seen: ir.Value, like: ir.Value) -> ir.Value:
        """Return [B, 1, 1, T, S]: 0 where a row is seen."""
        if is_seen not in self._biases:
            bias = self._op("Where", [is_seen, self._float(0.0, like), self._float(_LOW[_dtype(like)], like)])
            self._biases[is_seen] = self._op("Unsqueeze", [bias, self._integers(2)])
        return self._biases[is_seen]


def _dtype(value: ir.Value) -> ir.DataType:
    """Return the float of a value; export writes types where they are not float32."""
    return HALF if value.dtype == HALF else SINGLE


def _inputs(node: ir.Node, num: int) -> list[ir.Value]:
    """Return the first inputs of a node.

    Raises:
        BundleFormatError: One is left out.
    """
    found = [value for value in node.inputs[:num] if value is not None]
    if len(found) < num:
        raise BundleFormatError(f"{node.name} ({node.op_type}) lacks an input. Export the checkpoint again.")
    return found
