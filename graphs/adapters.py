"""Low-rank changes of linear layers, several side by side, of which every sequence runs through its own.

    x ── MatMul W ──  y     ->     x ─┬─ MatMul W ──────────────────────────── Add ── y
                                      └─ MatMul A ── Mul(is own [B, 1, R]) ── MatMul B ─┘

A holds the first matrices of all adapters beside one another, R columns together, and B their second ones below one
another. A column counts only for the sequences whose adapter it belongs to, so that sequences of several adapters run
in one batch, and weights are there once (Hu et al. 2021, section 4.1, computed for many adapters at once). An encoder
is told of one adapter for each run, whatever the axes of its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bundle import tensors
from graphs.labels import Label, LayerRole
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
    """A graph with a new input, the number of each sequence's adapter, or of a whole run's.

    Args:
        graph: Changed in place.
        role: Of the new layers, for whoever plans their weights.
        of_runs: The input is [1], of all that is run; else [B] of the sequences [B, T, K].
    """

    def __init__(self, graph: ir.Graph, role: LayerRole = "linear", *, of_runs: bool = False) -> None:
        self._graph, self._role = graph, role
        kind, shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1 if of_runs else "B"])
        self._chosen = ir.Value(name=tensors.ADAPTERS, type=kind, shape=shape)
        graph.inputs.append(self._chosen)
        self._first = graph[0]
        self._compared = self._chosen if of_runs else self._lined()
        self._masks: dict[tuple[int, ...], ir.Value] = {}
        self._times = Counter[str]()  # that a layer was changed: a weight may be read at several places

    def change(self, linear: Linear, changes: SideBySide) -> None:
        """Add what the chosen adapters make of a layer's input [..., K] to what the layer gives."""
        layer, product, rank = linear.name.removesuffix(".weight"), linear.node.outputs[0], len(changes.owners)
        times, rows = self._times[layer], Label.read(linear.weight).rows
        name = layer if not times else f"{layer}.{times}"
        down = self._weight(f"{layer}.adapters_down", (linear.num_inputs, rank), changes.read_down, rows)
        up = self._weight(f"{layer}.adapters_up", (rank, linear.num_outputs), changes.read_up, rows)
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
        self._times[layer] += 1

    def _take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let another value be the output that one is, under its name."""
        new.type, new.shape, new.name, old.name = old.type, old.shape, old.name, f"{old.name}.unchanged"
        self._graph.outputs[self._graph.outputs.index(old)] = new

    def _weight(self, name: str, shape: Sequence[int], read: Callable[[], Floats], rows: int | None) -> ir.Value:
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        tensor = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(read())), dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name
        )
        kind = ir.TensorType(ir.DataType.FLOAT)
        value = ir.Value(name=name, type=kind, shape=ir.Shape(shape), const_value=tensor)
        Label(self._role, rows).write(value)
        self._graph.register_initializer(value)
        return value

    def _lined(self) -> ir.Value:
        """Return [B, 1, 1] the number of each sequence's adapter."""
        last, middle = (add_initializer(self._graph, f"adapters.axis_{at}", np.array([at])) for at in (1, 2))
        row = make_node("Unsqueeze", [self._chosen, last], "adapters.chosen")
        lined = make_node("Unsqueeze", [row.outputs[0], middle], "adapters.lined")
        self._graph.insert_before(self._first, [row, lined])
        return lined.outputs[0]

    def _is_own(self, owners: tuple[int, ...]) -> ir.Value:
        """Return [B, 1, R], or [R] of a run, 1 for the columns of each one's adapter, and 0 for others."""
        if owners not in self._masks:
            name = f"adapters.{len(self._masks)}"
            columns = add_initializer(self._graph, f"{name}.owners", np.array(owners, np.int64))
            equal = make_node("Equal", [self._compared, columns], f"{name}.equal")
            mask = make_node("Cast", [equal.outputs[0]], f"{name}.mask", {"to": int(ir.DataType.FLOAT)})
            self._graph.insert_before(self._first, [equal, mask])
            self._masks[owners] = mask.outputs[0]
        return self._masks[owners]
