from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import find_linears
from quant.calibration.statistics import InputStatistics
from quant.weights.w8a8_static import StaticInt8, reference

FLOAT = ir.DataType.FLOAT


def statistics(x) -> InputStatistics:
    rows = x.reshape(-1, x.shape[-1])
    return InputStatistics(len(rows), np.abs(rows).max(axis=0))


@pytest.fixture
def one_linear(model_of, rng):
    weights = {"w": rng.standard_normal((48, 20)).astype(np.float32)}
    return model_of({"x": (FLOAT, ["M", 48])}, [("MatMul", ["x", "w"], "y", {})], weights, ["y"])


@pytest.mark.parametrize("loudness", [1.0, 5.0])
def test_the_graph_equals_its_numpy_reference_also_where_inputs_are_cut(one_linear, run, rng, loudness: float) -> None:
    rows = find_linears(one_linear.graph)[0].rows().copy()
    inputs = statistics(rng.standard_normal((30, 48)).astype(np.float32))
    x = np.float32(loudness) * rng.standard_normal((17, 48)).astype(np.float32)
    StaticInt8({"w": Form(8)}, {"w": inputs})(one_linear)
    (found,) = run(one_linear, x=x)
    # The integer sums are exact in both; only the order of two float32 products differs.
    np.testing.assert_allclose(found, reference(x, rows, inputs), rtol=3e-6, atol=1e-6)


def test_the_reference_is_near_the_float_product(rng) -> None:
    x, rows = rng.standard_normal((64, 256)).astype(np.float32), rng.standard_normal((32, 256)).astype(np.float32)
    exact = x @ rows.T
    error = np.linalg.norm(reference(x, rows, statistics(x)) - exact) / np.linalg.norm(exact)
    # The loudest of 16,384 Gaussian numbers is about 4.2: a step of 0.033 leaves 0.033 / sqrt(12), and weights 0.7 %.
    assert error < 0.015


def test_a_row_is_the_same_bits_alone_and_beside_a_100_times_louder_one(one_linear, run, rng) -> None:
    row = rng.standard_normal((1, 48)).astype(np.float32)
    StaticInt8({"w": Form(8)}, {"w": statistics(row)})(one_linear)
    (alone,) = run(one_linear, x=row)
    (batched,) = run(one_linear, x=np.concatenate([100 * row, row]))
    np.testing.assert_array_equal(batched[1:], alone)


@pytest.mark.parametrize("num_readers", [1, 3, 7])
def test_onnxruntime_fuses_every_layer_into_an_integer_product(model_of, run, rng, num_readers: int) -> None:
    weights = {f"w{i}": rng.standard_normal((32, 32)).astype(np.float32) for i in range(num_readers)}
    nodes = [("MatMul", ["x", name], f"y_{name}", {}) for name in weights]
    model = model_of({"x": (FLOAT, ["B", "T", 32])}, nodes, weights, [f"y_{name}" for name in weights])
    x = rng.standard_normal((2, 3, 32)).astype(np.float32)
    StaticInt8(dict.fromkeys(weights, Form(8)), dict.fromkeys(weights, statistics(x)))(model)
    run(model, x=x)
    ops = run.optimized_ops()
    assert ops.count("MatMulIntegerToFloat") == num_readers
    assert not {"MatMul", "Gemm", "DequantizeLinear"} & set(ops)


def test_a_bias_is_added_after_the_product(model_of, run, rng) -> None:
    weights = {"w": rng.standard_normal((16, 8)).astype(np.float32), "b": rng.standard_normal(8).astype(np.float32)}
    model = model_of({"x": (FLOAT, ["M", 16])}, [("Gemm", ["x", "w", "b"], "y", {})], weights, ["y"])
    x = rng.standard_normal((3, 16)).astype(np.float32)
    StaticInt8({"w": Form(8)}, {"w": statistics(x)})(model)
    expected = reference(x, weights["w"].T, statistics(x)) + weights["b"]
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=3e-6, atol=1e-6)


def test_all_zero_points_are_zero_and_all_scales_positive_constants(one_linear, rng) -> None:
    StaticInt8({"w": Form(8)}, {"w": statistics(rng.standard_normal((4, 48)).astype(np.float32))})(one_linear)
    steps = [node for node in one_linear.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(steps) == 3
    for node in steps:
        scale, zero = (each.const_value.numpy() for each in node.inputs[1:])
        assert (scale > 0).all()
        assert (zero == 0).all()
        assert zero.dtype == np.int8


def test_an_input_that_was_always_zero_gives_zeros(one_linear, run) -> None:
    StaticInt8({"w": Form(8)}, {"w": InputStatistics(1, np.zeros(48, np.float32))})(one_linear)
    np.testing.assert_array_equal(run(one_linear, x=np.zeros((2, 48), np.float32))[0], np.zeros((2, 20), np.float32))


def test_a_layer_that_was_not_calibrated_is_refused() -> None:
    with pytest.raises(QuantizationError, match="w: int8-static needs to know the layer's inputs"):
        StaticInt8({"w": Form(8)})


def test_other_forms_are_refused(rng) -> None:
    with pytest.raises(QuantizationError, match="one scale per output"):
        StaticInt8({"w": Form(8, 32)}, {"w": InputStatistics(1, np.ones(48, np.float32))})
