"""Layers that read one input made one: the same nodes once, over weights that lie beside one another.

    x ── [nodes of q] ── q                          ┌─ q
    x ── [nodes of k] ── k      ->   x ── [nodes] ──┼─ k
    x ── [nodes of v] ── v                          └─ v

Whatever a layer is made of (MatMul, MatMulNBits, MatMulBnb4, W8A8's chain, planes, offsets, inputs in float, biases),
it is a tree of operators over weights and over values that the layers have in common. Two layers can be one where their
trees are of one form: the same operators with the same attributes, weights of one dtype that differ in their number of
outputs alone, and everything else equal. Layers of other forms stay apart. A row of the result is computed from the
same numbers as before, so nothing is rounded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx_ir as ir

from graphs.store import CONTRIB

LAST, FIRST = -1, 0
"""The axis along which a value holds one number per output of its layer."""
_OTHER = {LAST: FIRST, FIRST: LAST}
_MOST_COMPARED_BYTES = 1 << 16
"""Of constants that are equal by their numbers; larger ones are equal where they are the same value."""
_MOST_COMPARED_NODES = 8
"""On the way from a layer to the input that it shares with another."""


class Joiner:
    """Joins layers of one graph.

    Args:
        graph: In which nodes and weights are made.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph

    def try_join(self, layers: Sequence[ir.Value]) -> ir.Value | None:
        """Return the outputs of layers side by side along the last axis; None where they are not of one form.

        Args:
            layers: Two or more nodes' outputs, [..., N] each of its own N. The new nodes stand behind the first.
        """
        first, *others = layers
        if any(not _can_join(first, other, LAST) for other in others):
            return None
        made: list[ir.Node] = []
        joined = self._joined(list(layers), LAST, made)
        self._graph.insert_after(producer_of(first), made)
        return joined

    def _joined(self, values: list[ir.Value], axis: int, made: list[ir.Node]) -> ir.Value:
        if values[0].is_initializer():
            return self._joined_weight(values, axis)
        nodes = [producer_of(value) for value in values]
        inputs: list[ir.Value | None] = []
        for at, wanted in enumerate(_axes(nodes[0], axis) or ()):
            sources = [node.inputs[at] for node in nodes]
            present = [source for source in sources if source is not None]
            inputs.append(sources[0] if wanted is None or not present else self._joined(present, wanted, made))
        attributes = dict(nodes[0].attributes)
        if "N" in attributes:
            attributes["N"] = ir.AttrInt64("N", sum(node.attributes["N"].as_int() for node in nodes))
        name = joined_name([str(value.name) for value in values])
        made.append(
            ir.Node(
                nodes[0].domain,
                nodes[0].op_type,
                inputs,
                list(attributes.values()),
                outputs=[ir.Value(name=name, type=values[0].type)],
                name=name,
            )
        )
        return made[-1].outputs[0]

    def _joined_weight(self, weights: list[ir.Value], axis: int) -> ir.Value:
        """Return a new initializer; its numbers are put together when they are read."""
        name = joined_name([str(weight.name) for weight in weights])
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        tensors = [_tensor(weight) for weight in weights]
        shape = [int(size) for size in tensors[0].shape]
        shape[axis] = sum(int(tensor.shape[axis]) for tensor in tensors)

        def beside() -> ir.Tensor:
            return ir.Tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=axis), name=name)

        tensor = ir.LazyTensor(beside, tensors[0].dtype, ir.Shape(shape), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor)
        self._graph.register_initializer(value)
        return value


def try_num_outputs(layer: ir.Value, axis: int = LAST) -> int | None:
    """Return N of a layer's output [..., N], as its weights tell; None for a value that is no layer's."""
    if layer.is_initializer():
        shape = _tensor(layer).shape
        return int(shape[axis]) if shape else None
    node = layer.producer()
    axes = None if node is None else _axes(node, axis)
    if node is None or axes is None:
        return None
    if "N" in node.attributes:
        return int(node.attributes["N"].as_int())
    found = (
        try_num_outputs(value, at) for value, at in zip(node.inputs, axes, strict=True) if value and at is not None
    )
    return next((size for size in found if size is not None), None)


def producer_of(value: ir.Value) -> ir.Node:
    """Return the node that makes a value.

    Raises:
        ValueError: The graph is given it.
    """
    node = value.producer()
    if node is None:
        raise ValueError(f"{value.name} is no node's output")
    return node


def joined_name(names: Sequence[str]) -> str:
    """Return one name for several: what they have in common once, what differs joined by "+".

    "layers.0.q_proj.weight" and "layers.0.k_proj.weight" make "layers.0.q_proj+k_proj.weight".
    """
    columns = zip_longest(*(name.split(".") for name in names), fillvalue="")
    return ".".join(parts[0] if len(set(parts)) == 1 else "+".join(filter(None, parts)) for parts in columns)


def are_equal(first: ir.Value | None, second: ir.Value | None, depth: int = _MOST_COMPARED_NODES) -> bool:
    """Return whether two values are the same, or computed by the same operators from the same.

    Args:
        first: A value, or None where an input is absent.
        second: Another.
        depth: Nodes that are looked at on the way back.
    """
    if first is second:
        return True
    if first is None or second is None:
        return False
    if first.is_initializer() or second.is_initializer():
        return first.is_initializer() and second.is_initializer() and _are_equal_weights(first, second)
    one, other = first.producer(), second.producer()
    if one is None or other is None or not depth or first.index() != second.index():
        return False
    return _are_alike(one, other) and all(
        are_equal(a, b, depth - 1) for a, b in zip(one.inputs, other.inputs, strict=True)
    )


def _are_equal_weights(first: ir.Value, second: ir.Value) -> bool:
    one, other = _tensor(first), _tensor(second)
    if one.nbytes > _MOST_COMPARED_BYTES or (one.dtype, tuple(one.shape)) != (other.dtype, tuple(other.shape)):
        return False
    return bool(np.array_equal(one.numpy(), other.numpy()))


def _can_join(first: ir.Value, second: ir.Value, axis: int) -> bool:
    """Return whether two values that hold outputs along an axis are of one form."""
    if first.is_initializer() or second.is_initializer():
        return first.is_initializer() and second.is_initializer() and _fit(_tensor(first), _tensor(second), axis)
    one, other = first.producer(), second.producer()
    if one is None or other is None or not _are_alike(one, other):
        return False
    axes = _axes(one, axis)
    if axes is None or axes != _axes(other, axis):
        return False
    pairs = zip(one.inputs, other.inputs, axes, strict=True)
    return all(are_equal(a, b) if wanted is None else _both_join(a, b, wanted) for a, b, wanted in pairs)


def _both_join(first: ir.Value | None, second: ir.Value | None, axis: int) -> bool:
    if first is None or second is None:
        return first is second
    return _can_join(first, second, axis)


def _fit(first: ir.TensorProtocol, second: ir.TensorProtocol, axis: int) -> bool:
    """Return whether two weights can lie beside one another."""
    one, other = list(first.shape), list(second.shape)
    if first.dtype != second.dtype or len(one) != len(other) or not one:
        return False
    one[axis] = other[axis] = 0
    return bool(one == other)


def _are_alike(one: ir.Node, other: ir.Node) -> bool:
    """Return whether two nodes are of one operator with one set of attributes, the number of outputs aside."""
    same = (one.domain, one.op_type, len(one.inputs)) == (other.domain, other.op_type, len(other.inputs))
    return same and _settings(one) == _settings(other)


def _settings(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items() if name != "N"}


def _axes(node: ir.Node, axis: int) -> list[int | None] | None:
    """Return along which axis each input holds outputs, None for one that has to be equal; None: not to be joined."""
    rest = len(node.inputs) - 1
    if node.op_type == "MatMul" and axis == LAST:
        return [None, LAST]
    if (node.domain, node.op_type) == (CONTRIB, "MatMulNBits"):
        return [None, *[FIRST] * rest]
    if (node.domain, node.op_type) == (CONTRIB, "MatMulBnb4"):
        return [None, *[FIRST] * rest] if _has_whole_blocks(node) else None
    if node.op_type == "Add" and axis == LAST:
        return [LAST, LAST]
    if node.op_type == "Mul" and axis == LAST and _is_row_peak(node.inputs[1]):
        return [LAST, None]
    if node.op_type == "Mul" and axis == FIRST:  # of weights: activations are never joined along their first axis
        return [FIRST, FIRST]
    if node.op_type == "DequantizeLinear" and axis == LAST and _is_weight_of_columns(node):
        return [LAST] * len(node.inputs)
    if node.op_type == "Cast":
        return [axis]
    if node.op_type == "Transpose":
        return [_OTHER[axis]]
    return None


def _has_whole_blocks(node: ir.Node) -> bool:
    """Return whether a MatMulBnb4 fills its blocks: they are laid out flat, and a last one may hold less."""
    size = node.attributes["K"].as_int() * node.attributes["N"].as_int()
    return bool(size % node.attributes["block_size"].as_int() == 0)


def _is_weight_of_columns(node: ir.Node) -> bool:
    """Return whether a DequantizeLinear gives a stored matrix [K, N] with one scale for each column."""
    codes, axis = node.inputs[0], node.attributes.get("axis")
    return bool(codes is not None and codes.is_initializer() and axis is not None and axis.as_int() == 1)


def _is_row_peak(value: ir.Value | None) -> bool:
    """Return whether a value is W8A8's peak of every row, [..., 1]."""
    node = None if value is None else value.producer()
    source = None if node is None or node.op_type != "Max" or node.inputs[0] is None else node.inputs[0].producer()
    return source is not None and source.op_type == "ReduceMax"


def _tensor(weight: ir.Value) -> ir.TensorProtocol:
    if weight.const_value is None:
        raise ValueError(f"{weight.name} holds no numbers")
    return weight.const_value
