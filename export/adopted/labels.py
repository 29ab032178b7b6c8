"""What our own graphs say of each layer, found out for a graph that others exported: by running it once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphs.labels import Label
from graphs.layers import Linear, find_linears, find_tables
from graphs.store import save_graph
from runtime.graph import Array, Graph
from runtime.settings import RuntimeSettings

_PROBE = "probe.onnx"
_EXPORTERS_NAME = re.compile(r"(onnx::\w+|val_\d+|\w*initializer\w*)")
"""What an exporter calls a weight that it turned or folded, in the place of its name in the checkpoint."""


def label_layers(model: ir.Model, feeds: Mapping[str, Array], folder: Path) -> None:
    """Write beside every weight what its layer does and how many rows meet it, and name those that have lost theirs.

    Args:
        model: An encoder.
        feeds: One image, or one text as long as the tower reads.
        folder: Where a copy of the graph may lie meanwhile.

    Raises:
        MachineError: ONNX Runtime is missing, or cannot run the graph.
    """
    graph = model.graph
    linears = find_linears(graph)
    rows = _rows(model, linears, feeds, folder)
    for linear in linears:
        Label("linear", rows[str(linear.input.name)]).write(linear.weight)
        _name(graph, linear)
    given = set(graph.inputs)
    for table in find_tables(graph):
        Label("table" if _reads(table.ids, given) else "constant table").write(table.weight)


def _rows(model: ir.Model, linears: list[Linear], feeds: Mapping[str, Array], folder: Path) -> dict[str, int]:
    """Return how many vectors meet each layer, by the name of what it reads."""
    probe = model.clone()
    wanted = {str(linear.input.name) for linear in linears}
    values = {str(value.name): value for node in probe.graph for value in node.outputs}
    given = {str(value.name) for value in probe.graph.outputs}
    probe.graph.outputs.extend(values[name] for name in sorted((wanted & values.keys()) - given))
    save_graph(probe, folder / _PROBE)
    try:
        found = Graph(folder / _PROBE, RuntimeSettings(), prepacks=False).run(feeds)
    finally:
        for path in folder.glob(f"{_PROBE}*"):
            path.unlink()
    return {name: int(np.prod(array.shape[:-1])) for name, array in {**feeds, **found}.items() if array.ndim}


def _reads(ids: ir.Value, given: set[ir.Value]) -> bool:
    """Return whether row numbers come from a caller."""
    waiting, seen = [ids], set()
    while waiting:
        value = waiting.pop()
        if value in given:
            return True
        producer = value.producer()
        # a length or a position is computed from the shape of what a caller sent, and not from its numbers
        if producer is None or producer.op_type == "Shape" or producer in seen:
            continue
        seen.add(producer)
        waiting.extend(value for value in producer.inputs if value is not None)
    return False


def _name(graph: ir.Graph, linear: Linear) -> None:
    """Give a weight without a name the one of its module, as the exporter wrote it into the node's."""
    place = [part for part in str(linear.node.name).split("/")[:-1] if part]
    if not place or not _EXPORTERS_NAME.fullmatch(str(linear.weight.name)):
        return
    wanted = ".".join([*place, "weight"])
    names = (wanted if at == 0 else f"{wanted}.{at}" for at in count())
    linear.weight.name = next(name for name in names if name not in graph.initializers)
