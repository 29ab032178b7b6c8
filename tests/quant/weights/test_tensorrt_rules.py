"""What TensorRT's documentation asks of explicit quantization, checked on graphs (tests/runtime/tensorrt builds them).

Only standard operators; Q/DQ with constant positive scales and zero points of 0; weights in int8 with a scale per
output, or in int4 with a scale per block. All of it with float32 around the codes, and with float16.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from bundle.form import Form
from bundle.states import State
from graphs.labels import Label
from graphs.layers import find_linears, find_tables
from graphs.lowering.tensorrt_halves import halve_for_tensorrt
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


@pytest.fixture
def quantized(graph_of, feeds_of, statistics_of) -> Callable[[str, str], ir.Model]:
    """Return a portable graph under a scheme."""

    def make(scheme: str, component: str) -> ir.Model:
        model = graph_of("smolvlm", "portable", component)
        statistics = statistics_of(model, feeds_of(model))
        block_size = SCHEMES[scheme].block_size or 1
        linears = [linear for linear in find_linears(model.graph) if linear.num_inputs % block_size == 0]
        forms = {linear.name: SCHEMES[scheme] for linear in linears}
        assert forms
        if scheme == "w8a8_static":
            statistics = load_scaling("smoothquant")(model, forms, statistics)
        load_pass(scheme)(forms, statistics)(model)
        return model

    return make


@pytest.mark.parametrize(("scheme", "component"), CASES)
def test_a_portable_graph_obeys_them(quantized, scheme: str, component: str) -> None:
    assert violations(quantized(scheme, component).graph) == []


def states_of(model: ir.Model) -> list[State]:
    inputs, outputs = model.graph.inputs, model.graph.outputs
    taken = [value for value in inputs if str(value.name).startswith("past_key_values")]
    given = [value for value in outputs if str(value.name).startswith("present")]
    return [
        State(input=a.name, output=b.name, dtype="float32", shape=("B", a.shape[1], "S", a.shape[3]), group=0)
        for a, b in zip(taken, given, strict=True)
    ]


@pytest.mark.parametrize(("scheme", "component"), [case for case in CASES if case[0] != "float16"])
def test_float16_around_codes_obeys_them_and_costs_little_more(
    graph_of, quantized, feeds_of, run, scheme: str, component: str
) -> None:
    model = quantized(scheme, component)
    feeds = feeds_of(model)
    parent = run(graph_of("smolvlm", "portable", component), **feeds)
    single = run(model, **feeds)
    states = states_of(model)
    halve_for_tensorrt(model, states)
    assert violations(model.graph) == []
    halves = {state.input: feeds[state.input].astype(np.float16) for state in states}
    for exact, before, found in zip(parent, single, run(model, **feeds | halves), strict=True):
        # float16 has 11 bits where activations have 8: some round to the other neighbour, about as far off.
        cost = np.linalg.norm(before - exact)
        assert np.linalg.norm(found.astype(np.float32) - exact) < 1.2 * cost + 0.005 * np.linalg.norm(exact)


def test_a_halved_decoder_hands_its_cache_over_uncast(quantized) -> None:
    model = quantized("w8a8", "decoder")
    states = states_of(model)
    halve_for_tensorrt(model, states)
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    assert len(states) == 6
    for state in states:
        past, present = values[state.input], values[state.output]
        assert past.dtype == present.dtype == ir.DataType.FLOAT16
        assert present.producer().op_type == "TensorScatter"
        assert present.producer().inputs[0] is past
    assert {values[name].dtype for name in ("inputs_embeds", "logits")} == {ir.DataType.FLOAT}


def test_a_row_of_zeros_is_divided_by_no_zero(quantized, feeds_of, run) -> None:
    model = quantized("w8a8", "decoder")
    feeds = feeds_of(model)
    halve_for_tensorrt(model, states_of(model))
    feeds["inputs_embeds"][:, 2] = 0
    feeds |= {name: array.astype(np.float16) for name, array in feeds.items() if name.startswith("past_key_values")}
    assert all(np.isfinite(found).all() for found in run(model, **feeds))


def test_a_scale_below_float16_stays_above_zero(quantized) -> None:
    model = quantized("w8a8", "vision_encoder")
    scale = next(value for name, value in model.graph.initializers.items() if name.endswith("fc1.weight.scale"))
    steps = scale.const_value.numpy().copy()
    steps[0] = 1e-12
    scale.const_value = ir.tensor(steps)
    halve_for_tensorrt(model, ())
    assert violations(model.graph) == []


def test_routers_keep_float32(model_of) -> None:
    weights = {name: np.ones((16, 16), np.float32) for name in ("a", "router")}
    nodes = [("MatMul", ["x", "a"], "h", {}), ("MatMul", ["h", "router"], "y", {})]
    model = model_of({"x": (ir.DataType.FLOAT, ["M", 16])}, nodes, weights, ["y"])
    Label("router").write(model.graph.initializers["router"])
    halve_for_tensorrt(model, ())
    assert [linear.name for linear in find_linears(model.graph)] == ["router"]


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
