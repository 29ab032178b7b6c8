"""Attention heads that can be read and replaced: an output and an input between attention and its output projection.

    attention ── o_proj        ->        attention ─┬─ Where(head_mask, head_values, ·) ── o_proj
                                                    └─ Slice, the last token ── head_outputs.0

The heads of every layer are found by what they are: a linear layer that reads an attention's result, whose queries
export has named. So both dialects and every decoder that attends over a cache are written alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from graphs.layers import Linear, find_linears
from graphs.segments import queries_name
from graphs.store import add_initializer, make_node

_ATTENTIONS = ("GroupQueryAttention", "Attention")
_ARRANGING = ("Reshape", "Transpose")
_TO_THE_END = 2**31 - 1


def open_heads(model: ir.Model, num_layers: int, num_heads: int, head_size: int) -> None:
    """Let the heads of a decoder be read and replaced, in place.

    Args:
        model: As export built it, with or without its weights.
        num_layers: L.
        num_heads: H.
        head_size: C.

    Raises:
        UnsupportedConfigError: A layer has no attention over a cache, or something stands between it and its output
            projection.
    """
    graph = model.graph
    found = dict(_projections(graph))
    missing = [number for number in range(num_layers) if number not in found]
    if missing or any(linear.num_inputs != num_heads * head_size for linear in found.values()):
        where = f"layers {', '.join(map(str, missing))} have" if missing else "a layer has"
        raise UnsupportedConfigError(
            f"task vectors replace what the heads of attention give to its output projection, and {where} none of "
            f"{num_heads} x {head_size} that is found; leave --task-vectors out"
        )
    heads = _Heads(graph, num_layers, num_heads, head_size)
    for number, linear in found.items():
        heads.open(number, linear)


def _projections(graph: ir.Graph) -> Iterator[tuple[int, Linear]]:
    """Yield the layers' numbers and their output projections."""
    numbers = {value: int(name.rpartition(".")[2]) for value in _values(graph) if (name := _queries(value))}
    for linear in find_linears(graph):
        attended = _behind(linear.input, _ATTENTIONS)
        queries = None if attended is None else _named(attended.inputs[0], numbers)
        if queries is not None:
            yield numbers[queries], linear


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    return (value for node in graph for value in node.outputs)


def _queries(value: ir.Value) -> str:
    """Return the name of a value that is a layer's rotated queries; else nothing."""
    name = str(value.name)
    return name if name.startswith(queries_name(0).removesuffix("0")) else ""


def _behind(value: ir.Value, wanted: tuple[str, ...]) -> ir.Node | None:
    """Return the node of some kinds that gives a value, possibly arranged otherwise; None where another does."""
    node = value.producer()
    while node is not None and node.op_type in _ARRANGING:
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return node if node is not None and node.op_type in wanted else None


def _named(value: ir.Value | None, names: dict[ir.Value, int]) -> ir.Value | None:
    """Return the named value that another one is, possibly arranged otherwise."""
    while value is not None and value not in names:
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in _ARRANGING else None
    return value


class _Heads:
    """The inputs of a graph, taken apart by layer, and what is written for each.

    Args:
        graph: The decoder's.
        num_layers: L.
        num_heads: H.
        head_size: C.
    """

    def __init__(self, graph: ir.Graph, num_layers: int, num_heads: int, head_size: int) -> None:
        self._graph = graph
        values = _input(graph, tensors.HEAD_VALUES, ir.DataType.FLOAT, ["B", num_layers, num_heads * head_size])
        mask = _input(graph, tensors.HEAD_MASK, ir.DataType.BOOL, ["B", "T", num_layers * num_heads])
        self._values = self._split(values, 1, num_layers)
        self._masks = self._split(mask, 2, num_layers)
        self._to_heads = self._numbers("head_sizes", [0, 0, num_heads, head_size])
        self._to_row = self._numbers("row_size", [0, 0, num_heads * head_size])
        self._inner = self._numbers("inner_axis", [3])
        self._last = [self._numbers(f"last_{name}", [at]) for name, at in (("start", -1), ("end", _TO_THE_END))]
        self._tokens = self._numbers("token_axis", [1])

    def open(self, number: int, linear: Linear) -> None:
        """Put the choice between a layer's own heads and others in front of its output projection."""
        row, name = linear.input, f"opened_heads.{number}"
        given = make_node("Slice", [row, *self._last, self._tokens], f"{tensors.HEAD_OUTPUTS}{number}")
        own = make_node("Reshape", [row, self._to_heads], f"{name}.own")
        other = make_node("Reshape", [self._values[number], self._to_heads], f"{name}.other")
        mask = make_node("Unsqueeze", [self._masks[number], self._inner], f"{name}.mask")
        chosen = make_node("Where", [mask.outputs[0], other.outputs[0], own.outputs[0]], f"{name}.chosen")
        whole = make_node("Reshape", [chosen.outputs[0], self._to_row], name)
        self._graph.insert_before(linear.node, [given, own, other, mask, chosen, whole])
        linear.node.replace_input_with(0, whole.outputs[0])
        given.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        given.outputs[0].shape = ir.Shape(["B", 1, linear.num_inputs])
        self._graph.outputs.append(given.outputs[0])

    def _split(self, value: ir.Value, axis: int, parts: int) -> list[ir.Value]:
        """Return the equal parts of an input, split in front of everything else."""
        outputs = [ir.Value(name=f"{value.name}.{part}") for part in range(parts)]
        attributes = {"axis": axis, "num_outputs": parts}
        node = ir.node("Split", [value], attributes, outputs=outputs, name=f"{value.name}.split")
        self._graph.insert_before(self._graph[0], [node])
        return outputs

    def _numbers(self, name: str, numbers: list[int]) -> ir.Value:
        return add_initializer(self._graph, f"opened_heads.{name}", np.array(numbers, np.int64))


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value
