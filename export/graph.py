"""A plan turned into an ONNX model, and the model written with its weights beside it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnxscript import GraphBuilder

from bundle.manifest import Component
from export.family import GraphPlan
from export.nn.dialect import Dialect
from graphs.labels import unlabelled
from graphs.store import save_graph, weight_bytes

_DTYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64, "bool": ir.DataType.BOOL}
_IR_VERSION = 11
"""Of ONNX 1.18, the first with opset 23."""
_PRODUCER = "pocketvlm"


def build_model(name: str, plan: GraphPlan, dialect: Dialect) -> ir.Model:
    """Return the model of a plan; its weights have names and shapes and no values yet.

    Args:
        name: Of the graph.
        plan: Module and signature.
        dialect: Its operator sets.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(dialect.opset_imports), name=name)
    builder = GraphBuilder(graph)
    taken = [(spec.name, spec.dtype, spec.shape) for spec in plan.inputs]
    taken += [(state.input, state.dtype, state.shape) for state in plan.states]
    given = [(spec.name, spec.dtype, spec.shape) for spec in (*plan.outputs, *plan.optional_outputs)]
    given += [(state.output, state.dtype, state.shape) for state in plan.states if state.output]
    returned = plan.module(builder.op, *(builder.input(input_, _DTYPES[dtype], [*at]) for input_, dtype, at in taken))
    values = returned if isinstance(returned, tuple) else (returned,)
    for value, (output, dtype, shape) in zip(values, given, strict=True):
        value.type = ir.TensorType(_DTYPES[dtype])
        value.shape = ir.Shape(shape)
        builder.add_output(value, output)
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name=_PRODUCER)


def write_model(model: ir.Model, folder: Path, plan: GraphPlan) -> Component:
    """Write `{name}.onnx` and `{name}.onnx.data`, one weight in memory at a time, and return the manifest's entry.

    Raises:
        TypeError: A module left a layer without a label.
    """
    bare = unlabelled(model.graph)
    if bare:
        raise TypeError(
            f"{model.graph.name}: {', '.join(bare)}: multiplied or looked up, and without a label. Give the Weight one "
            "in its module (docs/add-a-model.md); what is made smaller is planned by it"
        )
    file = f"{model.graph.name}.onnx"
    save_graph(model, folder / file)
    return Component(
        file=file,
        role=plan.role,
        scheme="fp32",
        inputs=plan.inputs,
        outputs=plan.outputs,
        optional_outputs=plan.optional_outputs,
        weight_bytes=weight_bytes(model),
    )
