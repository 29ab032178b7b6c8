from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import find_linears
from quant.weights.layer_codes import quantize_rows
from quant.weights.w8a8 import PerTokenInt8, reference

FLOAT = ir.DataType.FLOAT


@pytest.fixture
def one_linear(model_of, rng):
    weights = {"w": rng.standard_normal((48, 20)).astype(np.float32)}
    return model_of({"x": (FLOAT, ["M", 48])}, [("MatMul", ["x", "w"], "y", {})], weights, ["y"])


@pytest.mark.parametrize("num_rows", [1, 2, 17])
def test_the_graph_equals_its_numpy_reference(one_linear, run, rng, num_rows: int) -> None:
    rows = find_linears(one_linear.graph)[0].rows().copy()
    x = rng.standard_normal((num_rows, 48)).astype(np.float32)
    PerTokenInt8({"w": Form(8)})(one_linear)
    (found,) = run(one_linear, x=x)
    # The integer sums are exact in both; only the order of three float32 products differs.
    np.testing.assert_allclose(found, reference(x, rows), rtol=3e-6, atol=1e-6)


def test_the_reference_is_near_the_float_product(rng) -> None:
    x, rows = rng.standard_normal((64, 256)).astype(np.float32), rng.standard_normal((32, 256)).astype(np.float32)
    exact = x @ rows.T
    # Gaussian data with 8-bit weights and activations: known near 1.1 %.
    assert np.linalg.norm(reference(x, rows) - exact) / np.linalg.norm(exact) < 0.015


def test_a_row_is_the_same_bits_alone_and_beside_a_100_times_louder_one(one_linear, run, rng) -> None:
    PerTokenInt8({"w": Form(8)})(one_linear)
    row = rng.standard_normal((1, 48)).astype(np.float32)
    loud = 100 * rng.standard_normal((1, 48)).astype(np.float32)
    (alone,) = run(one_linear, x=row)
    (batched,) = run(one_linear, x=np.concatenate([loud, row, loud]))
    np.testing.assert_array_equal(batched[1:2], alone)


def test_one_scale_for_the_whole_tensor_would_fail_the_rule_above(model_of, run, rng) -> None:
    codes, scales = quantize_rows(rng.standard_normal((20, 48)).astype(np.float32))
    weights = {"w": np.ascontiguousarray(codes.T), "s": scales, "z": np.zeros(20, np.int8)}
    model = model_of(
        {"x": (FLOAT, ["M", 48])}, [("DynamicQuantizeMatMul", ["x", "w", "s", "z"], "y", {})], weights, ["y"]
    )
    model.graph[0].domain = "com.microsoft"
    model.graph.opset_imports["com.microsoft"] = 1
    row = rng.standard_normal((1, 48)).astype(np.float32)
    (alone,) = run(model, x=row)
    (batched,) = run(model, x=np.concatenate([100 * row, row]))
    assert np.abs(batched[1] - alone[0]).max() > 0.1 * np.abs(alone).max()


def test_onnxruntime_fuses_every_layer_into_an_integer_product(model_of, run, rng) -> None:
    weights = {name: rng.standard_normal((32, 32)).astype(np.float32) for name in ("q", "k", "o")}
    nodes = [
        ("MatMul", ["x", "q"], "a", {}),
        ("MatMul", ["x", "k"], "b", {}),
        ("Add", ["a", "b"], "c", {}),
        ("MatMul", ["c", "o"], "y", {}),
    ]
    model = model_of({"x": (FLOAT, ["B", "T", 32])}, nodes, weights, ["y"])
    PerTokenInt8(dict.fromkeys(weights, Form(8)))(model)
    run(model, x=rng.standard_normal((2, 3, 32)).astype(np.float32))
    ops = run.optimized_ops()
    assert ops.count("MatMulIntegerToFloat") == 3
    assert not {"MatMul", "Gemm", "DequantizeLinear"} & set(ops)


@pytest.mark.parametrize("num_readers", [2, 3, 7])
def test_layers_that_read_one_input_are_all_fused(model_of, run, rng, num_readers: int) -> None:
    weights = {f"w{i}": rng.standard_normal((32, 32)).astype(np.float32) for i in range(num_readers)}
    nodes = [("MatMul", ["x", name], f"y_{name}", {}) for name in weights]
    model = model_of({"x": (FLOAT, ["B", "T", 32])}, nodes, weights, [f"y_{name}" for name in weights])
    PerTokenInt8(dict.fromkeys(weights, Form(8)))(model)
    run(model, x=rng.standard_normal((2, 3, 32)).astype(np.float32))
    ops = run.optimized_ops()
    assert ops.count("MatMulIntegerToFloat") == num_readers
    assert "MatMul" not in ops


def test_layers_that_read_one_input_share_its_peaks(model_of, rng) -> None:
    weights = {name: rng.standard_normal((32, 32)).astype(np.float32) for name in ("q", "k", "v")}
    nodes = [("MatMul", ["x", name], f"y_{name}", {}) for name in weights]
    model = model_of({"x": (FLOAT, ["M", 32])}, nodes, weights, ["y_q", "y_k", "y_v"])
    PerTokenInt8(dict.fromkeys(weights, Form(8)))(model)
    ops = [node.op_type for node in model.graph]
    assert ops.count("Div") == ops.count("ReduceMax") == 1
    assert ops.count("MatMul") == 3


def test_an_all_zero_row_gives_zeros(one_linear, run) -> None:
    PerTokenInt8({"w": Form(8)})(one_linear)
    (found,) = run(one_linear, x=np.zeros((2, 48), np.float32))
    np.testing.assert_array_equal(found, np.zeros((2, 20), np.float32))


def test_a_layer_that_the_graph_lacks_is_named(one_linear) -> None:
    with pytest.raises(QuantizationError, match="elsewhere"):
        PerTokenInt8({"w": Form(8), "elsewhere": Form(8)})(one_linear)


def test_layers_not_named_keep_their_float_weights(model_of, rng) -> None:
    weights = {name: rng.standard_normal((32, 32)).astype(np.float32) for name in ("a", "b")}
    model = model_of(
        {"x": (FLOAT, ["M", 32])}, [("MatMul", ["x", "a"], "h", {}), ("MatMul", ["h", "b"], "y", {})], weights, ["y"]
    )
    PerTokenInt8({"a": Form(8)})(model)
    assert [linear.name for linear in find_linears(model.graph)] == ["b"]
    assert "a" not in model.graph.initializers


def test_a_graph_too_old_for_the_operators_is_refused(model_of, rng) -> None:
    weights = {"w": rng.standard_normal((8, 8)).astype(np.float32)}
    model = model_of({"x": (FLOAT, ["M", 8])}, [("MatMul", ["x", "w"], "y", {})], weights, ["y"], opset=17)
    with pytest.raises(QuantizationError, match="opset 18 or newer, the graph has 17"):
        PerTokenInt8({"w": Form(8)})(model)


@pytest.mark.parametrize("form", [Form(4), Form(8, 32)])
def test_other_forms_are_refused(form: Form) -> None:
    with pytest.raises(QuantizationError, match="one scale per output"):
        PerTokenInt8({"w": form})
