"""What TensorRT's documentation asks of explicit quantization, checked on graphs; TensorRT itself is not run here.

Only standard operators; Q/DQ with constant positive scales and zero points of 0; weights in int8 with a scale per
output, or in int4 with a scale per block.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.form import Form
from graphs.layers import find_linears, find_tables
from quant.scaling.table import load_scaling
from quant.weights.table import load_pass

SCHEMES = {
    "w8a8": Form(8),
    "w8a8_static": Form(8),
    "qdq_int4": Form(4, 32),
    "float16": Form(16),
}
CASES = [
    ("w8a8", "vision_encoder"),
    ("w8a8", "decoder"),
    ("w8a8_static", "vision_encoder"),
    ("w8a8_static", "decoder"),
    ("qdq_int4", "vision_encoder"),  # no block divides the widths of the tiny decoder
    ("float16", "vision_encoder"),
    ("float16", "decoder"),
]


def violations(graph: ir.Graph) -> list[str]:
    """Return what a strongly typed TensorRT network would refuse."""
    found = [f"{node.op_type} of {node.domain}" for node in graph if node.domain != ""]
    for node in graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        if scale is None or scale.const_value is None or not (scale.const_value.numpy() > 0).all():
            found.append(f"{node.name}: a scale that is no positive constant")
        if zero is not None and (zero.const_value is None or np.asarray(zero.const_value.numpy()).astype(int).any()):
            found.append(f"{node.name}: a zero point other than 0")
        if zero is not None and zero.dtype not in (ir.DataType.INT8, ir.DataType.INT4):
            found.append(f"{node.name}: codes of {zero.dtype}")
    return found


@pytest.mark.parametrize(("scheme", "component"), CASES)
def test_a_portable_graph_obeys_them(graph_of, feeds_of, statistics_of, scheme: str, component: str) -> None:
    model = graph_of("smolvlm", "portable", component)
    statistics = statistics_of(model, feeds_of(model))
    block_size = SCHEMES[scheme].block_size or 1
    linears = [linear for linear in find_linears(model.graph) if linear.num_inputs % block_size == 0]
    forms = {linear.name: SCHEMES[scheme] for linear in linears}
    assert forms
    if scheme == "w8a8_static":
        statistics = load_scaling("smoothquant")(model, forms, statistics)
    load_pass(scheme)(forms, statistics)(model)
    assert violations(model.graph) == []


def test_a_portable_table_obeys_them(graph_of) -> None:
    model = graph_of("smolvlm", "portable", "embed_tokens")
    load_pass("gather_rows")({table.name: Form(8) for table in find_tables(model.graph)})(model)
    assert violations(model.graph) == []


def test_an_operator_of_onnxruntime_and_a_zero_point_break_them(graph_of) -> None:
    model = graph_of("smolvlm", "contrib", "decoder")
    load_pass("w8a8")({linear.name: Form(8) for linear in find_linears(model.graph)})(model)
    zero = next(value for name, value in model.graph.initializers.items() if name.endswith("input_zero"))
    zero.const_value = ir.tensor(np.array(1, np.int8))
    found = violations(model.graph)
    assert "GroupQueryAttention of com.microsoft" in found
    assert sum("zero point other than 0" in each for each in found) == 2  # of its Q and of its DQ
