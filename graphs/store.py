"""Graphs opened, edited and saved without their weights ever being in memory twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CONTRIB = "com.microsoft"
_EXTERNAL_FROM_BYTES = 1024  # below it a tensor stays inside the .onnx file, where shape inference can read it
PAGE_BYTES = 4096  # large weights start on a page, so that a runtime can map them


def open_graph(path: Path) -> ir.Model:
    """Return a model whose external weights are mapped, not read."""
    return ir.load(path)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write `path` and, beside it, `path + ".data"` with every weight of 1 KiB or more."""
    data = path.name + ".data"
    ir.save(model, path, external_data=data, size_threshold_bytes=_EXTERNAL_FROM_BYTES, alignment=PAGE_BYTES)


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers as stored."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(int(tensor.nbytes) for tensor in tensors if tensor is not None)


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Return a new initializer of the graph, or the one that already has that name."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.Tensor(np.asarray(array, order="C"), name=name)  # a scalar stays one
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def add_new_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Return a new initializer, numbered where something else in the graph has its name."""
    free, at = name, 1
    while free in graph.initializers:
        free, at = f"{name}.{at}", at + 1
    return add_initializer(graph, free, array)


def make_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    output: str,
    attributes: Mapping[str, int | float | str] | None = None,
    domain: str = "",
) -> ir.Node:
    """Return a node with one named output, not yet in a graph."""
    return ir.node(op_type, inputs, dict(attributes or {}), domain=domain, outputs=[ir.Value(name=output)], name=output)


def replace_node(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put nodes in the place of one; the last one's output takes over its output's name, type and users."""
    ir.convenience.replace_nodes_and_values(graph, old, [old], list(new), list(old.outputs), [new[-1].outputs[0]])
    new[-1].name = old.name


def drop_unused(model: ir.Model) -> None:
    """Remove Transpose nodes and initializers that nothing reads any more."""
    graph = model.graph
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if all(not value.uses() and value not in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]
