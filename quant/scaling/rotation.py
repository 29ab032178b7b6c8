"""A decoder's residual stream turned by a random rotation, so that no channel of it is louder than the others.

The linear layers behind a decoder's norms meet a few channels that are ten or a hundred times louder than the rest.
Whoever rounds their inputs with one step for all channels loses the rest. A rotation R spreads a loud channel over all
of them, and it costs nothing where it can be folded into weights (QuaRot, arXiv 2404.00456; SpinQuant, 2405.16406):
RMS normalization commutes with it once its weight g has been moved into the layers that read it.

    x ── norm(g) ── MatMul(W)       =      x R ── norm(1) ── MatMul(R^T diag(g) W)
    a ── MatMul(W) ── + x           =      a ── MatMul(W R) ── + x R

Where the stream begins and ends stands a product of its own, D x D, in float32: one on the embeddings, and one before
the vocabulary's scores, whose matrix often is the embedding table and must stay it. Both together are 2 D^2 products a
token. The function of the graph stays what it was, its cache included.

We differ from QuaRot in that nothing is turned while the model runs: the inputs of `down_proj`, which would need that,
keep their loudest channels in float instead (`quant.weights.float_columns`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from graphs.layers import Float32, Linear, find_linears
from graphs.store import add_initializer, make_node

_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization")
_SELECTS_ROWS = ("GatherND",)
TURNED_CHANNELS = 64
"""In a block. SmolLM2-135M lost 0.0011 nats with 32, 0.0009 with 64 and 0.0006 with 128; time grows with them."""

_SEED = 20260
"""Any will do; the same one makes the two graphs of a decoder that runs in two phases share what they store."""


@dataclass(frozen=True)
class Stream:
    """The residual stream of a graph: values of one width that layers read through norms and add to.

    Attributes:
        entry: The graph's input at which it begins, [..., D].
        width: D.
        norms: Those whose readers are all linear layers that can be turned, with those readers.
        ends: Norms that something else reads, such as a head that is stored once with the embedding table.
        writers: Linear layers whose outputs are added to the stream.
        biases: Vectors [D] that are added to the stream.
    """

    entry: ir.Value
    width: int
    norms: tuple[tuple[ir.Node, tuple[Linear, ...]], ...]
    ends: tuple[ir.Node, ...]
    writers: tuple[Linear, ...]
    biases: tuple[ir.Value, ...]


def find_stream(graph: ir.Graph) -> Stream | None:
    """Return the residual stream of a graph that can be turned for nothing; None where there is none.

    None where anything but RMS norms, sums and selections of rows reads the stream, or where fewer norms lead to
    linear layers of their own than do not (experts read rows as a whole, and would need a product each).
    """
    for entry in graph.inputs:
        if any(node.op_type in _NORMS for node, _ in entry.uses()):
            return _Search(graph).stream(entry)
    return None


def rotate(model: ir.Model) -> bool:
    """Turn the residual stream of a model in place, and return whether it has one.

    Weights are computed anew whenever they are read, so that a mapped file stays mapped.
    """
    stream = find_stream(model.graph)
    if stream is None:
        return False
    turn = rotation(stream.width)
    for norm, readers in stream.norms:
        weight = _as_array(norm.inputs[1])
        for reader in readers:
            _rewrite(reader.weight, _reader_turned(weight, turn, reader.is_transposed))
        _rewrite(norm.inputs[1], np.ones_like)
    for writer in stream.writers:
        _rewrite(writer.weight, _writer_turned(turn, writer.is_transposed))
    for bias in stream.biases:
        _rewrite(bias, lambda vector: vector @ turn)
    _turn_entry(model.graph, stream.entry, turn)
    for norm in stream.ends:
        _turn_back(model.graph, norm, turn)
    return True


def turn_inputs(model: ir.Model, layers: Collection[str]) -> None:
    """Turn the inputs of named linear layers in blocks of `TURNED_CHANNELS` channels, in place.

    Args:
        model: Of float32 weights.
        layers: Weight names, each read by one layer alone whose input [B, T, K] is of whole blocks.
    """
    turn = rotation(TURNED_CHANNELS)
    for linear in find_linears(model.graph):
        if linear.name in layers:
            _turn_input(model.graph, linear, turn)


def can_turn_input(linear: Linear) -> bool:
    """Return whether `turn_inputs` can turn a layer's input: its weight is its own, and blocks are whole."""
    return _owns_weight(linear) and linear.num_inputs % TURNED_CHANNELS == 0


def _turn_input(graph: ir.Graph, linear: Linear, turn: Float32) -> None:
    x, blocks = linear.input, linear.num_inputs // TURNED_CHANNELS
    whole = add_initializer(graph, f"turned.{linear.num_inputs}", np.array([0, 0, linear.num_inputs], np.int64))
    apart = add_initializer(graph, f"turned.{blocks}x", np.array([0, 0, blocks, TURNED_CHANNELS], np.int64))
    split = make_node("Reshape", [x, apart], f"{x.name}.blocks")
    turned = make_node(
        "MatMul", [split.outputs[0], add_initializer(graph, "turned.matrix", turn)], f"{x.name}.turned_blocks"
    )
    joined = make_node("Reshape", [turned.outputs[0], whole], f"{x.name}.turned")
    joined.outputs[0].type, joined.outputs[0].shape = x.type, x.shape
    graph.insert_before(linear.node, [split, turned, joined])
    linear.node.replace_input_with(0, joined.outputs[0])
    _rewrite(linear.weight, _blocks_turned(turn, linear.is_transposed))


def _blocks_turned(turn: Float32, is_transposed: bool) -> Callable[[Float32], Float32]:
    def turned(stored: Float32) -> Float32:
        rows = stored if is_transposed else stored.T
        rows = (rows.reshape(len(rows), -1, TURNED_CHANNELS) @ turn).reshape(rows.shape)
        return np.asarray(rows if is_transposed else rows.T, np.float32)

    return turned


def rotation(width: int) -> Float32:
    """Return a random orthogonal matrix [D, D] float32, the same one for the same width."""
    drawn = np.random.default_rng(_SEED + width).standard_normal((width, width))
    q, r = np.linalg.qr(drawn)
    return np.asarray(q * np.sign(np.diagonal(r)), np.float32)  # signs fixed: the factor is then the only one


def _reader_turned(norm_weight: Float32, turn: Float32, is_transposed: bool) -> Callable[[Float32], Float32]:
    def turned(stored: Float32) -> Float32:
        rows = ((stored if is_transposed else stored.T) * norm_weight) @ turn
        return np.asarray(rows if is_transposed else rows.T, np.float32)

    return turned


def _writer_turned(turn: Float32, is_transposed: bool) -> Callable[[Float32], Float32]:
    return lambda stored: turn.T @ stored if is_transposed else stored @ turn


def _rewrite(weight: ir.Value | None, change: Callable[[Float32], Float32]) -> None:
    before = None if weight is None else weight.const_value
    if weight is None or before is None:
        raise QuantizationError("a norm or linear layer holds no numbers; export the checkpoint again")

    def changed() -> ir.Tensor:
        return ir.Tensor(np.ascontiguousarray(change(before.numpy()), np.float32), name=before.name)

    weight.const_value = ir.LazyTensor(changed, before.dtype, before.shape, name=before.name)


def _as_array(weight: ir.Value | None) -> Float32:
    if weight is None or weight.const_value is None:
        raise QuantizationError("a norm holds no weight; export the checkpoint again")
    return np.array(weight.const_value.numpy(), np.float32)


def _turn_entry(graph: ir.Graph, entry: ir.Value, turn: Float32) -> None:
    """Insert the product with R behind the graph's input."""
    readers = [(node, at) for node, at in entry.uses() if node.op_type != "Shape"]
    product = make_node("MatMul", [entry, add_initializer(graph, "rotation.in", turn)], f"{entry.name}.rotated")
    product.outputs[0].type, product.outputs[0].shape = entry.type, entry.shape
    graph.insert_before(next(node for node in graph if node in {reader for reader, _ in readers}), product)
    for node, at in readers:
        node.replace_input_with(at, product.outputs[0])


def _turn_back(graph: ir.Graph, norm: ir.Node, turn: Float32) -> None:
    """Insert the product with R^T and the norm's weight behind a norm."""
    out = norm.outputs[0]
    readers = list(out.uses())
    matrix = turn.T * _as_array(norm.inputs[1])
    product = make_node("MatMul", [out, add_initializer(graph, f"rotation.{norm.name}", matrix)], f"{out.name}.back")
    product.outputs[0].type, product.outputs[0].shape = out.type, out.shape
    graph.insert_after(norm, product)
    for node, at in readers:
        node.replace_input_with(at, product.outputs[0])
    _rewrite(norm.inputs[1], np.ones_like)


class _Search:
    """Follows the stream from where it begins."""

    def __init__(self, graph: ir.Graph) -> None:
        self._linears = {linear.node: linear for linear in find_linears(graph)}
        self._outputs = set(graph.outputs)
        self._seen: set[ir.Value] = set()
        self._norms: list[ir.Node] = []
        self._writers: list[Linear] = []
        self._biases: list[ir.Value] = []

    def stream(self, entry: ir.Value) -> Stream | None:
        """Return the stream that begins at a graph's input; None where it cannot be turned."""
        if entry.shape is None or not isinstance(width := entry.shape[-1], int) or not self._follow(entry):
            return None
        turned, ends = [], []
        for norm in self._norms:
            readers = self._readers(norm)
            if readers is None:
                ends.append(norm)
            else:
                turned.append((norm, readers))
        if len(ends) >= len(turned) or any(_length(norm.inputs[1]) != width for norm in self._norms):
            return None
        return Stream(entry, width, tuple(turned), tuple(ends), tuple(self._writers), tuple(self._biases))

    def _follow(self, first: ir.Value) -> bool:
        """Collect all that reads the stream and adds to it; return whether all of it can be turned."""
        waiting = [first]
        while waiting:
            value = waiting.pop()
            if value in self._seen:
                continue
            self._seen.add(value)
            if value in self._outputs:
                return False
            for node, at in value.uses():
                if node.op_type in _NORMS and at == 0:
                    self._norms.append(node)
                elif self._goes_on(node, at):
                    waiting.append(node.outputs[0])
                elif node.op_type != "Shape":
                    return False
        return True

    def _goes_on(self, node: ir.Node, at: int) -> bool:
        """Return whether the stream goes on behind a node that reads it as input `at`."""
        selects = node.op_type in _SELECTS_ROWS and at == 0
        return selects or (node.op_type == "Add" and self._adds(node, 1 - at))

    def _adds(self, node: ir.Node, at: int) -> bool:
        """Return whether what is added to the stream is made by a linear layer that can be turned."""
        if node.outputs[0] in self._seen:
            return True
        term = node.inputs[at]
        producer = None if term is None or len(term.uses()) != 1 else term.producer()
        if producer is not None and producer.op_type == "Add" and producer not in self._linears:
            biases = [value for value in producer.inputs if value is not None and _length(value)]
            terms = [value for value in producer.inputs if value is not None and not _length(value)]
            if not biases:
                return self._writes(producer)
            if len(biases) != 1 or len(terms) != 1 or len(biases[0].uses()) != 1:
                return False
            self._biases.append(biases[0])
            producer = terms[0].producer()
        return self._writes(producer)

    def _writes(self, producer: ir.Node | None) -> bool:
        """Return whether what a node gives is made by linear layers that can be turned, and note them.

        They are one, or one and an adapter's that is added to it.
        """
        linear = None if producer is None else self._linears.get(producer)
        if producer is not None and linear is None and producer.op_type == "Add":
            terms = [value for value in producer.inputs if value is not None and len(value.uses()) == 1]
            return len(terms) == 2 and all(self._writes(term.producer()) for term in terms)
        if linear is None or not _owns_weight(linear):
            return False
        if linear.bias is not None:
            self._biases.append(linear.bias)
        self._writers.append(linear)
        return True

    def _readers(self, norm: ir.Node) -> tuple[Linear, ...] | None:
        """Return the linear layers behind a norm, each with a weight of its own; None where others read it too."""
        from graphs.labels import Label

        found = []
        for node, _ in norm.outputs[0].uses():
            linear = self._linears.get(node)
            if linear is None or not _owns_weight(linear):
                return None
            label = Label.try_read(linear.weight)
            if label is not None and label.role not in ("linear", "adapter"):
                return None
            found.append(linear)
        return tuple(found)


def _length(vector: ir.Value | None) -> int:
    """Return the length of an initializer of one axis; 0 for anything else."""
    tensor = vector.const_value if vector is not None and vector.is_initializer() else None
    return int(tensor.shape[0]) if tensor is not None and len(tensor.shape) == 1 else 0


def _owns_weight(linear: Linear) -> bool:
    """Return whether nothing else reads a layer's weight, turned or not."""
    stored = linear.node.inputs[1]
    return len(linear.weight.uses()) == 1 and stored is not None and len(stored.uses()) == 1
