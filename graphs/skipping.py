"""Feed-forwards that some tokens skip: their rows are left out before one, and come back behind it as they were.

    x ── norm ── feed-forward ── Add(x, ·)   ->   x ─┬─ GatherND(rows) ── norm ── feed-forward ── ScatterND(x, rows, +)
                                                     └─────────────────────────────────────────────┘

An input says which of these layers each token runs through in full. A feed-forward is found by what it is: all that is
added to the hidden states that it reads, before those that export has named. So both dialects and every decoder that is
attention and then a feed-forward are written alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from graphs.segments import hidden_name
from graphs.store import add_initializer, make_node, replace_node


def skip_feed_forwards(model: ir.Model, layers: Sequence[int]) -> None:
    """Let tokens skip the feed-forwards of some layers of a decoder, in place.

    Args:
        model: As export built it, with or without its weights.
        layers: Rising, counted from 0.

    Raises:
        UnsupportedConfigError: A layer does not end with a feed-forward that is added to what it reads.
    """
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    ends = [_FeedForward.before(values[hidden_name(layer + 1)], layer) for layer in layers]
    rows = _Rows(graph, len(layers))
    for number, end in enumerate(ends):
        end.leave_out(graph, rows, number)


class _FeedForward:
    """What is added to the hidden states that a layer's attention left.

    Args:
        layer: Its number.
        add: The sum with those states.
        source: The states.
        nodes: Of the feed-forward, norms among them.
    """

    def __init__(self, layer: int, add: ir.Node, source: ir.Value, nodes: Collection[ir.Node]) -> None:
        self._layer, self._add, self._source, self._nodes = layer, add, source, nodes

    @classmethod
    def before(cls, hidden: ir.Value, layer: int) -> _FeedForward:
        """Return the feed-forward whose sum is the hidden states behind a layer.

        Raises:
            UnsupportedConfigError: There is none.
        """
        add = hidden.producer()
        given = [] if add is None or add.op_type != "Add" else [value for value in add.inputs if value is not None]
        for source, added in zip(given, given[::-1], strict=True):
            if add is not None and (nodes := _between(source, added)):
                return cls(layer, add, source, nodes)
        raise UnsupportedConfigError(
            f"--skip-visual: layer {layer} of the decoder does not end with a feed-forward that is added to what it "
            "reads, so that none can be skipped; leave that layer out"
        )

    def leave_out(self, graph: ir.Graph, rows: _Rows, number: int) -> None:
        """Run the feed-forward on some rows alone, and leave the others as they were.

        Args:
            graph: The decoder's.
            rows: Of all layers.
            number: Of the layer among these.
        """
        name, (places,) = f"skipping.{self._layer}", (listed := rows.gathered(number)).outputs
        chosen = make_node("GatherND", [self._source, places], f"{name}.rows")
        batch = make_node("Unsqueeze", [chosen.outputs[0], rows.front], f"{name}.batch")
        graph.insert_before(next(node for node in graph if node in self._nodes), [listed, chosen, batch])
        for node in self._nodes:
            for at, value in enumerate(node.inputs):
                if value is self._source:
                    node.replace_input_with(at, batch.outputs[0])
            for output in node.outputs:
                output.shape = None  # of other rows now: ONNX Runtime shares buffers by what shapes say
        (added,) = (value for value in self._add.inputs if value is not self._source)
        flat = make_node("Squeeze", [added, rows.front], f"{name}.flat")
        left = rows.cut(flat.outputs[0], number)
        scattered = [self._source, rows.of_layers[number], left.outputs[0]]
        whole = make_node("ScatterND", scattered, f"{name}.whole", {"reduction": "add"})
        hidden = str(self._add.outputs[0].name)
        replace_node(graph, self._add, [flat, left, whole])
        whole.outputs[0].name = hidden


def _between(source: ir.Value, added: ir.Value) -> set[ir.Node]:
    """Return the nodes from one value to another; none where something else comes in beside weights."""
    seen, waiting, reads = set[ir.Node](), [added.producer()], False
    while waiting:
        node = waiting.pop()
        if node is None:
            return set()
        if node in seen:
            continue
        seen.add(node)
        inputs = [value for value in node.inputs if value is not None and not value.is_initializer()]
        reads = reads or any(value is source for value in inputs)
        waiting += [value.producer() for value in inputs if value is not source]
    return seen if reads else set()


class _Rows:
    """Which tokens run through each layer in full, by an input; all of them are found in front of everything else.

    Args:
        graph: The decoder's, which gets the input.
        num_layers: n.
    """

    def __init__(self, graph: ir.Graph, num_layers: int) -> None:
        self._graph, self._nodes, self._num = graph, list[ir.Node](), num_layers
        mask = ir.Value(
            name=tensors.FULL_LAYERS, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(["B", "T", num_layers])
        )
        graph.inputs.append(mask)
        by_layer = self._node("Transpose", [mask], "by_layer", perm=[2, 0, 1])
        numbers = self._node("Cast", [by_layer], "numbers", to=ir.DataType.INT64)
        counts = self._node("ReduceSum", [numbers, self._constant("tokens", [1, 2])], "counts", keepdims=0)
        places = self._node("Transpose", [self._node("NonZero", [by_layer], "places")], "listed", perm=[1, 0])
        bounds = [self._constant(name, [at]) for name, at in (("one", 1), ("three", 3), ("one", 1))]
        rows = self._node("Slice", [places, *bounds], "rows")
        starts = self._node("CumSum", [counts, self._scalar(0)], "starts", exclusive=1)
        ends = self._node("Add", [starts, self._node("Max", [counts, bounds[0]], "run")], "ends")
        self._some = self._node("Concat", [rows, self._constant("no_place", [[0, 0]])], "some", axis=0)
        self.of_layers = self._split(rows, "of", counts)
        self._counts, self._starts, self._ends = (
            self._split(value, name) for value, name in ((counts, "count"), (starts, "start"), (ends, "end"))
        )
        graph.insert_before(graph[0], self._nodes)

    def gathered(self, number: int) -> ir.Node:
        """Return the node that lists the rows of a layer [n, 2], or some other one where it has none.

        ONNX Runtime 1.31 multiplies no rows by matrices of int8 wrongly (DynamicQuantizeMatMul gives another shape).
        """
        front = self.front
        return make_node("Slice", [self._some, self._starts[number], self._ends[number], front], f"rows.{number}.run")

    def cut(self, value: ir.Value, number: int) -> ir.Node:
        """Return the node that leaves of rows [n, D] those that a layer has."""
        return make_node("Slice", [value, self.front, self._counts[number], self.front], f"rows.{number}.left")

    @property
    def front(self) -> ir.Value:
        """[0]."""
        return self._constant("zero", [0])

    def _split(self, value: ir.Value, name: str, sizes: ir.Value | None = None) -> list[ir.Value]:
        outputs = [ir.Value(name=f"skipping.{name}.{number}") for number in range(self._num)]
        inputs, equal = ([value], {"num_outputs": self._num}) if sizes is None else ([value, sizes], {})
        self._nodes.append(ir.node("Split", inputs, {"axis": 0, **equal}, outputs=outputs, name=f"skipping.{name}"))
        return outputs

    def _node(self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: Any) -> ir.Value:
        output = ir.Value(name=f"skipping.{name}")
        self._nodes.append(ir.node(op_type, inputs, attributes, outputs=[output], name=output.name))
        return output

    def _constant(self, name: str, numbers: list[int] | list[list[int]]) -> ir.Value:
        return add_initializer(self._graph, f"skipping.{name}", np.array(numbers, np.int64))

    def _scalar(self, number: int) -> ir.Value:
        return add_initializer(self._graph, f"skipping.axis_{number}", np.array(number, np.int64))
