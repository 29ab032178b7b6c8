from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import find_linears
from graphs.store import weight_bytes
from quant.calibration.statistics import InputStatistics
from quant.rounding.rtn import round_to_nearest
from quant.weights.qdq_int4 import DequantizedInt4, reference

FLOAT = ir.DataType.FLOAT


@pytest.fixture
def linear_model(model_of, rng):
    def build(num_inputs: int, num_outputs: int, opset: int = 21) -> ir.Model:
        weights = {"w": rng.standard_normal((num_inputs, num_outputs)).astype(np.float32)}
        return model_of({"x": (FLOAT, ["M", num_inputs])}, [("MatMul", ["x", "w"], "y", {})], weights, ["y"], opset)

    return build


@pytest.mark.parametrize("opset", [21, 24])
@pytest.mark.parametrize(
    ("num_inputs", "num_outputs", "block_size"), [(64, 8, 32), (192, 7, 64), (640, 5, 128), (96, 1, 32)]
)
def test_the_fused_graph_equals_its_numpy_reference(
    linear_model, run, rng, opset: int, num_inputs: int, num_outputs: int, block_size: int
) -> None:
    model, form = linear_model(num_inputs, num_outputs, opset), Form(4, block_size)
    rows = find_linears(model.graph)[0].rows().copy()
    DequantizedInt4({"w": form})(model)
    assert {node.domain for node in model.graph} == {""}
    for num_rows in (1, 3, 40):
        x = rng.standard_normal((num_rows, num_inputs)).astype(np.float32)
        (found,) = run(model, x=x)
        expected = reference(x, rows, form)
        # Ties of the int8 activations may fall either way, as in MatMulNBits.
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
    assert run.optimized_ops() == ["MatMulNBits"]


def test_the_stored_weights_obey_the_documented_rules_of_tensorrt(linear_model) -> None:
    model = linear_model(128, 16)
    DequantizedInt4({"w": Form(4, 64)})(model)
    (node,) = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert len(node.inputs) == 2  # no zero point: 0
    codes, scales = (value.const_value for value in node.inputs)
    assert codes.dtype == ir.DataType.INT4
    assert list(codes.shape) == [128, 16]
    assert list(scales.shape) == [2, 16]
    assert np.all(scales.numpy() > 0)


def test_weights_take_half_a_byte_and_their_scales(linear_model) -> None:
    model = linear_model(128, 16)
    DequantizedInt4({"w": Form(4, 64)})(model)
    assert weight_bytes(model) == 128 * 16 // 2 + 2 * 16 * 4


def test_codes_are_those_of_round_to_nearest_where_its_scale_is_positive(linear_model) -> None:
    model = linear_model(128, 16)
    nearest = round_to_nearest(find_linears(model.graph)[0].rows(), 4, 32)
    DequantizedInt4({"w": Form(4, 32)})(model)
    found = model.graph.initializers["w.int4"].const_value.numpy().astype(np.int8).T + 8
    is_same = np.repeat(nearest.scales > 0, 32, axis=1)
    assert is_same.any()
    np.testing.assert_array_equal(found[is_same], nearest.codes[is_same])


def test_gptq_is_fed_back_on_the_positive_grid(linear_model, run, rng) -> None:
    model, form = linear_model(64, 8), Form(4, 32, "gptq")
    rows = find_linears(model.graph)[0].rows().copy()
    mixing = rng.standard_normal((16, 64)).astype(np.float32)
    inputs = InputStatistics(16, np.abs(mixing).max(0), mixing.T @ mixing / 16)
    DequantizedInt4({"w": form}, {"w": inputs})(model)
    x = rng.standard_normal((4, 16)).astype(np.float32) @ mixing
    (found,) = run(model, x=x)
    expected = reference(x, rows, form, inputs)
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
    plain = reference(x, rows, Form(4, 32))
    assert np.linalg.norm(found - x @ rows.T) < 0.8 * np.linalg.norm(plain - x @ rows.T)


def test_two_layers_that_share_a_weight_are_both_fused(model_of, run, rng) -> None:
    weights = {"w": rng.standard_normal((32, 32)).astype(np.float32)}
    nodes = [("MatMul", ["x", "w"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    model = model_of({"x": (FLOAT, ["M", 32])}, nodes, weights, ["y"])
    DequantizedInt4({"w": Form(4, 32)})(model)
    x = np.ones((2, 32), np.float32)
    hidden = reference(x, weights["w"].T, Form(4, 32))
    expected = reference(hidden, weights["w"].T, Form(4, 32))
    assert np.linalg.norm(run(model, x=x)[0] - expected) < 1e-2 * np.linalg.norm(expected)  # two int8 roundings
    assert run.optimized_ops() == ["MatMulNBits", "MatMulNBits"]


def test_the_bias_of_a_gemm_is_added(model_of, run, rng) -> None:
    rows, bias = rng.standard_normal((7, 64)).astype(np.float32), 9 * rng.standard_normal(7).astype(np.float32)
    nodes = [("Gemm", ["x", "w", "b"], "y", {"transB": 1})]
    model = model_of({"x": (FLOAT, ["M", 64])}, nodes, {"w": rows, "b": bias}, ["y"])
    DequantizedInt4({"w": Form(4, 32)})(model)
    x = rng.standard_normal((4, 64)).astype(np.float32)
    expected = reference(x, rows, Form(4, 32)) + bias
    assert np.linalg.norm(run(model, x=x)[0] - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (Form(8, 32), "stores 4 bits in blocks"),
        (Form(4, 16), "stores 4 bits in blocks"),
        (Form(4), "stores 4 bits in blocks"),
        (Form(4, 32, "hqq"), "zero points or negative scales.*take one of rtn, gptq"),
        (Form(4, 32, "gptq"), "needs the Gram"),
    ],
)
def test_forms_that_it_lacks_are_refused(form: Form, told: str) -> None:
    with pytest.raises(QuantizationError, match=told):
        DequantizedInt4({"w": form})


@pytest.mark.parametrize(
    ("num_inputs", "told"), [(576, "576 inputs; take 32 or 64"), (33, "33 inputs; none does: keep it")]
)
def test_a_block_that_does_not_divide_is_refused_with_those_that_do(linear_model, num_inputs: int, told: str) -> None:
    with pytest.raises(QuantizationError, match=told):
        DequantizedInt4({"w": Form(4, 128)})(linear_model(num_inputs, 4))


def test_a_graph_too_old_for_int4_is_refused(linear_model) -> None:
    with pytest.raises(QuantizationError, match="opset 21"):
        DequantizedInt4({"w": Form(4, 32)})(linear_model(64, 4, 20))
