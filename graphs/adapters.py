"""Low-rank changes of linear layers, several side by side, of which every sequence runs through its own.

    x ── MatMul W ──  y     ->     x ─┬─ MatMul W ──────────────────────────── Add ── y
                                      └─ MatMul A ── Mul(is own [B, 1, R]) ── MatMul B ─┘

Layers that read one value have one A between them, whose rows are split for the second product of each.

A holds the first matrices of all adapters beside one another, R columns together, and B their second ones below one
another. A column counts only for the sequences whose adapter it belongs to, so that sequences of several adapters run
in one batch, and weights are there once (Hu et al. 2021, section 4.1, computed for many adapters at once). An encoder
is told of one adapter for each run, whatever the axes of its rows.
"""

from __future__ import annotations

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


_STOPS = (
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "LayerNormalization",
    "GroupQueryAttention",
    "Attention",
    "ScatterND",
)
"""Behind them rows are those of sequences, whatever was before."""


def reads_chosen_rows(linear: Linear) -> bool:
    """Return whether a layer reads rows that were chosen over all sequences, as experts do that run their own alone."""
    seen, waiting = set[ir.Node](), [linear.input.producer()]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node.op_type in _STOPS:
            continue
        if node.op_type == "GatherND" and "batch_dims" not in node.attributes:
            return True
        seen.add(node)
        waiting += [value.producer() for value in node.inputs if value is not None]
    return False


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

    def change(self, layers: Sequence[tuple[Linear, SideBySide]]) -> None:
        """Add what the chosen adapters make of an input [..., K] to what layers give that read it.

        Args:
            layers: All of those that read one value, in node order: its narrow rows are computed for them together.
        """
        (first, _), *others = layers
        name = self._name(first)
        owners = tuple(owner for _, changes in layers for owner in changes.owners)
        reads = [changes.read_down for _, changes in layers]
        down = self._weight(
            f"{name}.adapters_down",
            (first.num_inputs, len(owners)),
            lambda: np.concatenate([read() for read in reads], axis=1),
            first,
        )
        narrow = make_node("MatMul", [first.input, down], f"{name}.narrow")
        own = make_node("Mul", [narrow.outputs[0], self._is_own(owners)], f"{name}.own")
        made, parts = [narrow, own], own.outputs
        if others:
            sizes = np.array([len(changes.owners) for _, changes in layers], np.int64)
            counts = add_initializer(self._graph, f"adapters.sizes_{'_'.join(map(str, sizes))}", sizes)
            named = [ir.Value(name=f"{name}.own.{at}") for at in range(len(layers))]
            made.append(ir.node("Split", [own.outputs[0], counts], {"axis": -1}, outputs=named, name=f"{name}.parts"))
            parts = named
        self._graph.insert_after(first.node, made)
        for (linear, changes), part in zip(layers, parts, strict=True):
            self._widen(linear, changes, part, made[-1] if linear is first else linear.node)

    def _widen(self, linear: Linear, changes: SideBySide, narrow: ir.Value, behind: ir.Node) -> None:
        """Add the second matrices' product with narrow rows [..., R] to what a layer gives."""
        name, product = self._name(linear), linear.node.outputs[0]
        size = len(changes.owners), linear.num_outputs
        up = self._weight(f"{name}.adapters_up", size, changes.read_up, linear)
        readers = list(product.uses())
        wide = make_node("MatMul", [narrow, up], f"{name}.wide")
        changed = make_node("Add", [product, wide.outputs[0]], f"{name}.changed")
        self._graph.insert_after(behind, [wide, changed])
        for reader, place in readers:
            reader.replace_input_with(place, changed.outputs[0])
        if product in self._graph.outputs:
            self._take_over(product, changed.outputs[0])

    def _name(self, linear: Linear) -> str:
        """Return what a layer is called: by its weight, and by its node as well where several layers read that."""
        name = linear.name.removesuffix(".weight")
        return name if len(linear.weight.uses()) == 1 else f"{name}.{linear.node.outputs[0].name}"

    def _take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let another value be the output that one is, under its name."""
        new.type, new.shape, new.name, old.name = old.type, old.shape, old.name, f"{old.name}.unchanged"
        self._graph.outputs[self._graph.outputs.index(old)] = new

    def _weight(self, name: str, shape: Sequence[int], read: Callable[[], Floats], beside: Linear) -> ir.Value:
        tensor = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(read())), dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name
        )
        kind = ir.TensorType(ir.DataType.FLOAT)
        value = ir.Value(name=name, type=kind, shape=ir.Shape(shape), const_value=tensor)
        Label(self._role, Label.read(beside.weight).rows).write(value)
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
