"""Low-rank changes of linear layers, several side by side, of which every sequence runs through its own.

    x ── MatMul W ──  y     ->     x ─┬─ MatMul W ──────────────────────────── Add ── y
                                      └─ MatMul A ── Mul(is own [B, 1, R]) ── MatMul B ─┘

A holds the first matrices of all adapters beside one another, R columns together, and B their second ones below one
another. A column counts only for the sequences whose adapter it belongs to, so that sequences of several adapters run
in one batch, and weights are there once (Hu et al. 2021, section 4.1, computed for many adapters at once).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bundle import tensors
from graphs.labels import Label
from graphs.layers import Linear
from graphs.store import add_initializer, make_node

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SideBySide:
    """The changes of one layer by all adapters that have one.

    Attributes:
        owners: [R] the number of the adapter that each column belongs to.
        read_down: Returns A, [K, R].
        read_up: Returns B, [R, N], scaled.
    """

    owners: tuple[int, ...]
    read_down: Callable[[], Floats]
    read_up: Callable[[], Floats]


class ChosenAdapters:
    """A decoder's graph with a new input, the number of each sequence's adapter.

    Args:
        graph: Changed in place.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        kind, shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["B"])
        self._chosen = ir.Value(name=tensors.ADAPTERS, type=kind, shape=shape)
        graph.inputs.append(self._chosen)
        self._masks: dict[tuple[int, ...], ir.Value] = {}

    def change(self, linear: Linear, changes: SideBySide) -> None:
        """Add what the sequences' adapters make of a layer's input [B, T, K] to what the layer gives."""
        name, product, rank = linear.name.removesuffix(".weight"), linear.node.outputs[0], len(changes.owners)
        down = self._weight(f"{name}.adapters_down", (linear.num_inputs, rank), changes.read_down)
        up = self._weight(f"{name}.adapters_up", (rank, linear.num_outputs), changes.read_up)
        readers = list(product.uses())
        narrow = make_node("MatMul", [linear.input, down], f"{name}.narrow")
        own = make_node("Mul", [narrow.outputs[0], self._is_own(changes.owners)], f"{name}.own")
        wide = make_node("MatMul", [own.outputs[0], up], f"{name}.wide")
        changed = make_node("Add", [product, wide.outputs[0]], f"{name}.changed")
        self._graph.insert_after(linear.node, [narrow, own, wide, changed])
        for reader, place in readers:
            reader.replace_input_with(place, changed.outputs[0])
        if product in self._graph.outputs:
            self._take_over(product, changed.outputs[0])

    def _take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let another value be the output that one is, under its name."""
        new.type, new.shape, new.name, old.name = old.type, old.shape, old.name, f"{old.name}.unchanged"
        self._graph.outputs[self._graph.outputs.index(old)] = new

    def _weight(self, name: str, shape: Sequence[int], read: Callable[[], Floats]) -> ir.Value:
        tensor = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(read())), dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name
        )
        kind = ir.TensorType(ir.DataType.FLOAT)
        value = ir.Value(name=name, type=kind, shape=ir.Shape(shape), const_value=tensor)
        Label("linear").write(value)
        self._graph.register_initializer(value)
        return value

    def _is_own(self, owners: tuple[int, ...]) -> ir.Value:
        """Return [B, 1, R] 1 for the columns of each sequence's adapter, and 0 for others."""
        if owners not in self._masks:
            name = f"adapters.{len(self._masks)}"
            last, middle = (add_initializer(self._graph, f"adapters.axis_{at}", np.array([at])) for at in (1, 2))
            columns = add_initializer(self._graph, f"{name}.owners", np.array(owners, np.int64))
            row = make_node("Unsqueeze", [self._chosen, last], f"{name}.chosen")
            lined = make_node("Unsqueeze", [row.outputs[0], middle], f"{name}.lined")
            equal = make_node("Equal", [lined.outputs[0], columns], f"{name}.equal")
            mask = make_node("Cast", [equal.outputs[0]], f"{name}.mask", {"to": int(ir.DataType.FLOAT)})
            self._graph.insert_before(self._graph[0], [row, lined, equal, mask])
            self._masks[owners] = mask.outputs[0]
        return self._masks[owners]
