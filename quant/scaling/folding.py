"""Scales moved between a linear layer and what produces its input, so that the graph computes what it did.

    x ── MatMul(W)      =      x / s ── MatMul(s W)

Where 1/s can be folded into the weights that x is made of, the scaling costs nothing at run time. `find_folds` says
where it can. It goes from the input of linear layers up to the weights of a normalization or of another linear layer,
through whatever treats each channel by itself on the way: a bias, one factor of a product, ReLU, the values of an
encoder's attention, and reshaping that keeps channels apart.

What a second reader sees must not change, so a value on the way that anything else reads ends the search: the residual
stream, a value that enters a product twice, a graph output. That is why the values of a decoder's cache are never
scaled: the cache is an output, which the graphs of a bundle share and which is compared with the one recorded at
export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from graphs.layers import Float32, Linear, find_linears

Channels = NDArray[np.int64]

_NORMS = ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization")
_HEADS = {"MultiHeadAttention": ("num_heads", "num_heads"), "Attention": ("q_num_heads", "kv_num_heads")}
"""Attention over [B, T, heads * C] by the attributes that count the heads of queries and of values."""
_VALUE = 2  # which input of those is the values
_FUSED_BIAS = 3  # of MultiHeadAttention, on queries, keys and values at once


@dataclass(frozen=True)
class Source:
    """Weights with one part per channel.

    Attributes:
        weight: The initializer.
        axis: Along which its channels lie.
    """

    weight: ir.Value
    axis: int


@dataclass(frozen=True)
class Fold:
    """An input whose channels can be scaled.

    Attributes:
        readers: The linear layers that read it, all of the same K.
        sources: What it is made of.
        channels: [K], which channel of the sources each channel of the input is.
        num_channels: Of the sources, at most K.
    """

    readers: tuple[Linear, ...]
    sources: tuple[Source, ...]
    channels: Channels
    num_channels: int

    def largest(self, values: Float32) -> Float32:
        """Return the largest of values [K] in each channel of the sources, [num_channels]."""
        found = np.zeros(self.num_channels, np.float32)
        np.maximum.at(found, self.channels, values)
        return found

    def apply(self, divisors: Float32) -> Float32:
        """Divide the input by divisors [num_channels] > 0, multiply the readers' weights, and return divisors [K].

        Weights are computed anew whenever they are read, so that a mapped file stays mapped.
        """
        for source in self.sources:
            _multiply(source.weight, np.reciprocal(divisors), source.axis)
        spread: Float32 = divisors[self.channels]
        for reader in self.readers:
            _multiply(reader.weight, spread, axis=1 if reader.is_transposed else 0)
        return spread


def find_folds(graph: ir.Graph) -> list[Fold]:
    """Return the inputs of linear layers that can be scaled, in node order; no two have a source in common."""
    linears = find_linears(graph)
    search = _Search({linear.node: linear for linear in linears}, set(graph.outputs))
    readers: dict[ir.Value, list[Linear]] = {}
    for linear in linears:
        readers.setdefault(linear.input, []).append(linear)
    folds = (search.fold(value, layers) for value, layers in readers.items())
    return [fold for fold in folds if fold is not None]


def _multiply(weight: ir.Value, factors: Float32, axis: int) -> None:
    before = weight.const_value
    if before is None:
        raise QuantizationError(f"{weight.name} holds no numbers")
    shape = [1] * len(before.shape)
    shape[axis] = -1
    spread = factors.reshape(shape)

    def multiplied() -> ir.Tensor:
        return ir.Tensor(np.asarray(before.numpy() * spread, np.float32), name=before.name)

    weight.const_value = ir.LazyTensor(multiplied, before.dtype, before.shape, name=before.name)


@dataclass(frozen=True)
class _Origin:
    """What a value is made of; fields as of `Fold`, channels for the value's own last axis."""

    sources: tuple[Source, ...]
    channels: Channels
    num_channels: int


class _Search:
    """Goes from values up to what they are made of.

    Args:
        linears: Of the graph, by node.
        outputs: Of the graph.
    """

    def __init__(self, linears: dict[ir.Node, Linear], outputs: set[ir.Value]) -> None:
        self._linears = linears
        self._outputs = outputs

    def fold(self, value: ir.Value, readers: Sequence[Linear]) -> Fold | None:
        """Return how the input of some layers can be scaled; None where it cannot."""
        if _num_readings(value) != len(readers) or not all(_owns_weight(reader) for reader in readers):
            return None
        origin = self._origin(value)
        if origin is None or len(origin.channels) != readers[0].num_inputs:
            return None
        return Fold(tuple(readers), origin.sources, origin.channels, origin.num_channels)

    def _only(self, value: ir.Value | None) -> _Origin | None:
        """Return the origin of a value that has one reader."""
        return self._origin(value) if value is not None and _num_readings(value) == 1 else None

    def _origin(self, value: ir.Value) -> _Origin | None:
        node = value.producer()
        if node is None or value in self._outputs:
            return None
        if node.op_type in _NORMS:
            return _of_norm(node)
        if node.op_type in _HEADS:
            return self._of_attention(node)
        step = {
            "MatMul": self._of_linear,
            "Gemm": self._of_linear,
            "Add": self._of_sum,
            "Mul": self._of_product,
            "Transpose": self._of_transpose,
            "Reshape": self._of_reshape,
            "Relu": self._of_relu,
        }.get(node.op_type)
        return None if step is None else step(node)

    def _of_linear(self, node: ir.Node) -> _Origin | None:
        linear = self._linears.get(node)
        if linear is None or not _owns_weight(linear):
            return None
        weight = Source(linear.weight, 0 if linear.is_transposed else 1)
        origin = _Origin((weight,), np.arange(linear.num_outputs), linear.num_outputs)
        return origin if linear.bias is None else _with_vector(origin, linear.bias)

    def _of_sum(self, node: ir.Node) -> _Origin | None:
        for term, other in (node.inputs, node.inputs[::-1]):
            if other is not None and other.is_initializer():
                origin = self._only(term)
                return None if origin is None else _with_vector(origin, other)
        return None

    def _of_product(self, node: ir.Node) -> _Origin | None:
        """Return the origin of a factor that enters the product once and is not its own gate."""
        return next((origin for factor in node.inputs if (origin := self._only(factor)) is not None), None)

    def _of_relu(self, node: ir.Node) -> _Origin | None:
        return self._only(node.inputs[0])

    def _of_transpose(self, node: ir.Node) -> _Origin | None:
        order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else []
        return self._only(node.inputs[0]) if order and order[-1] == len(order) - 1 else None

    def _of_reshape(self, node: ir.Node) -> _Origin | None:
        """Return the origin of whole rows laid end to end: channels repeat along the new last axis."""
        shape, origin = node.inputs[1], self._only(node.inputs[0])
        if origin is None or shape is None or shape.const_value is None:
            return None
        last = int(shape.const_value.numpy()[-1])
        if last <= 0 or last % len(origin.channels):
            return None
        return replace(origin, channels=np.tile(origin.channels, last // len(origin.channels)))

    def _of_attention(self, node: ir.Node) -> _Origin | None:
        """Return the origin of values: softmax mixes rows, never channels; a head of values may serve several."""
        counts = [node.attributes[name].as_int() for name in _HEADS[node.op_type] if name in node.attributes]
        biased = node.op_type == "MultiHeadAttention" and node.inputs[_FUSED_BIAS : _FUSED_BIAS + 1] not in (
            (),
            (None,),
        )
        origin = None if biased or len(counts) != 2 else self._only(node.inputs[_VALUE])
        if origin is None:
            return None
        num_heads, num_value_heads = counts
        by_head = origin.channels.reshape(num_value_heads, -1)
        return replace(origin, channels=np.repeat(by_head, num_heads // num_value_heads, axis=0).ravel())


def _num_readings(value: ir.Value) -> int:
    """Return how often a value's numbers are read; Shape reads none."""
    return sum(use.node.op_type != "Shape" for use in value.uses())


def _of_norm(node: ir.Node) -> _Origin | None:
    weights = [value for value in node.inputs[1:] if value is not None]
    size = _length(weights[0])
    origin = _Origin((), np.arange(size), size)
    for weight in weights:
        grown = _with_vector(origin, weight)
        if grown is None:
            return None
        origin = grown
    return origin


def _with_vector(origin: _Origin, vector: ir.Value) -> _Origin | None:
    """Return an origin with a bias or a norm's scale among its sources; None where that is not one per channel."""
    is_plain = np.array_equal(origin.channels, np.arange(origin.num_channels))
    if not is_plain or _length(vector) != origin.num_channels or len(vector.uses()) != 1:
        return None
    return replace(origin, sources=(*origin.sources, Source(vector, 0)))


def _length(vector: ir.Value) -> int:
    """Return the length of an initializer of one axis; 0 for anything else."""
    tensor = vector.const_value if vector.is_initializer() else None
    return int(tensor.shape[0]) if tensor is not None and len(tensor.shape) == 1 else 0


def _owns_weight(linear: Linear) -> bool:
    """Return whether nothing else reads a layer's weight, turned or not."""
    stored = linear.node.inputs[1]
    return len(linear.weight.uses()) == 1 and stored is not None and len(stored.uses()) == 1
