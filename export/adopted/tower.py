"""One tower cut out of a graph that others exported: its inputs and output under our names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from onnxscript import version_converter

from bundle import tensors
from bundle.errors import CheckpointError, UnsupportedConfigError
from bundle.manifest import TensorSpec
from graphs.store import add_initializer, drop_unused, make_node

_OPSET = 23
"""Of our own graphs; what is written into them when weights are made smaller is spelled in it."""
_IR_VERSION = 11
_SEGMENTS = "token_type_ids"
Pooling: TypeAlias = Literal["mean", "cls", "last"]
"""How texts become one vector: the mean over their tokens, the first one's state, or the last one's."""


@dataclass(frozen=True)
class Cut:
    """What is taken of an exported graph.

    Attributes:
        name: Of the new graph.
        output: The exported graph's.
        inputs: Specs of the new graph's inputs by the exported names; those that do not lead to the output are left
            out.
        result: Spec of the new graph's output.
        pooling: How one vector is made of an output that has one for every token; None: the output is the vector.
    """

    name: str
    output: str
    inputs: Mapping[str, TensorSpec]
    result: TensorSpec
    pooling: Pooling | None = None


def open_exported(path: Path) -> ir.Model:
    """Return an exported graph in the operators that ours are written in.

    Raises:
        CheckpointError: It is no ONNX file.
        UnsupportedConfigError: Its operators cannot be brought there.
    """
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's and onnx_ir's errors share no class
        raise CheckpointError(f"{path} is not an ONNX graph: {error}") from error
    stated = model.opset_imports.get("", _OPSET)
    if stated < _OPSET:
        try:
            version_converter.convert_version(model, _OPSET, fallback=True)
        except Exception as error:  # whatever an operator's adapter raises
            raise UnsupportedConfigError(f"{path}: opset {stated} cannot be brought to {_OPSET}: {error}") from error
    if model.opset_imports.get("", _OPSET) < _OPSET:
        raise UnsupportedConfigError(
            f"{path}: opset {stated} cannot be brought to {_OPSET}; export it again with a newer one"
        )
    model.ir_version = max(model.ir_version or 0, _IR_VERSION)
    return model


def cut_tower(exported: ir.Model, cut: Cut) -> tuple[ir.Model, tuple[TensorSpec, ...]]:
    """Return the part of a graph that leads to one output, and the specs of its inputs.

    Segment ids, which tell the two texts of a pair apart, become the zeros that a single text has.

    Raises:
        UnsupportedConfigError: The output hangs on an input that is not among those that are known.
    """
    model = exported.clone()
    graph = model.graph
    graph.name = cut.name
    output = next(value for value in graph.outputs if value.name == cut.output)
    if cut.pooling is not None:
        output = _pooled(graph, output, cut.pooling)
    graph.outputs[:] = [output]
    drop_unused(model)
    _without_segments(graph)
    taken: list[TensorSpec] = []
    kept: list[ir.Value] = []
    for value in graph.inputs:
        if not value.uses():
            continue
        spec = cut.inputs.get(str(value.name))
        if spec is None:
            raise UnsupportedConfigError(
                f"{cut.name} takes the input {value.name}, which is not known; known are {', '.join(cut.inputs)}"
            )
        kept.append(_declared(value, spec))
        taken.append(spec)
    graph.inputs[:] = kept
    _forget_shapes(graph)
    _declared(output, cut.result)
    return model, tuple(taken)


def _pooled(graph: ir.Graph, states: ir.Value, pooling: Pooling) -> ir.Value:
    """Return the value [B, D] that is made of [B, T, D], where the mask has a one for each token of a text."""
    first = add_initializer(graph, "pooling.first", np.array(0, np.int64))
    if pooling == "cls":
        return _appended(graph, "Gather", [states, first], "pooling.cls", {"axis": 1})
    mask = next(value for value in graph.inputs if value.name == tensors.ATTENTION_MASK)
    axis = add_initializer(graph, "pooling.axis", np.array([1], np.int64))
    if pooling == "last":
        count = _appended(graph, "ReduceSum", [mask, axis], "pooling.count", {"keepdims": 1})
        one = add_initializer(graph, "pooling.one", np.array(1, np.int64))
        place = _appended(graph, "Sub", [count, one], "pooling.place")
        return _appended(graph, "GatherND", [states, place], "pooling.last", {"batch_dims": 1})
    numbers = _appended(graph, "Cast", [mask], "pooling.numbers", {"to": ir.DataType.FLOAT})
    last_axis = add_initializer(graph, "pooling.last_axis", np.array([2], np.int64))
    column = _appended(graph, "Unsqueeze", [numbers, last_axis], "pooling.column")
    seen = _appended(graph, "Mul", [states, column], "pooling.seen")
    total = _appended(graph, "ReduceSum", [seen, axis], "pooling.total", {"keepdims": 0})
    count = _appended(graph, "ReduceSum", [column, axis], "pooling.tokens", {"keepdims": 0})
    return _appended(graph, "Div", [total, count], "pooling.mean")


def _appended(
    graph: ir.Graph, op_type: str, inputs: list[ir.Value], name: str, attributes: Mapping[str, int] | None = None
) -> ir.Value:
    node = make_node(op_type, inputs, name, attributes)
    graph.append(node)
    return node.outputs[0]


def _declared(value: ir.Value, spec: TensorSpec) -> ir.Value:
    dtype = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}[spec.dtype]
    value.name, value.type, value.shape = spec.name, ir.TensorType(dtype), ir.Shape(spec.shape)
    return value


def _forget_shapes(graph: ir.Graph) -> None:
    """Drop what the exporter noted of sizes between layers, in names of its own that would contradict ours."""
    for node in graph:
        for value in node.outputs:
            value.shape = None


def _without_segments(graph: ir.Graph) -> None:
    segments = next((value for value in graph.inputs if value.name == _SEGMENTS and value.uses()), None)
    if segments is None:
        return
    ids = next(value for value in graph.inputs if value.name == tensors.INPUT_IDS)
    zeros = make_node("Sub", [ids, ids], f"{_SEGMENTS}.none")
    graph.insert_before(graph[0], zeros)
    segments.replace_all_uses_with(zeros.outputs[0])
