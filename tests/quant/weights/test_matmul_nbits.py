from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import find_linears
from quant.calibration.statistics import InputStatistics
from quant.rounding.block_codes import BlockCodes
from quant.rounding.table import load_rounding
from quant.weights import layer_codes
from quant.weights.matmul_nbits import MatMulNBits, reference

FLOAT = ir.DataType.FLOAT
ZERO_POINTS, OFFSETS, PLANES = (4, "hqq"), (2, "ternary-mean"), (2, "ternary-planes")
OTHER_FORMS = [(2, "hqq"), (8, "hqq"), ZERO_POINTS, (2, "ternary"), (2, "four-level"), OFFSETS, PLANES]


@pytest.fixture
def linear_model(model_of, rng):
    def build(num_inputs: int, num_outputs: int) -> ir.Model:
        weights = {"w": rng.standard_normal((num_inputs, num_outputs)).astype(np.float32)}
        return model_of({"x": (FLOAT, ["M", num_inputs])}, [("MatMul", ["x", "w"], "y", {})], weights, ["y"])

    return build


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 8), (33, 7), (200, 5)])
def test_the_operator_equals_its_numpy_reference(
    linear_model, run, rng, bits: int, block_size: int, num_inputs: int, num_outputs: int
) -> None:
    model, form = linear_model(num_inputs, num_outputs), Form(bits, block_size)
    rows = find_linears(model.graph)[0].rows().copy()
    MatMulNBits({"w": form})(model)
    for num_rows in (1, 3, 40):
        x = rng.standard_normal((num_rows, num_inputs)).astype(np.float32)
        (found,) = run(model, x=x)
        expected = reference(x, rows, form)
        # Both round the activations to the same int8 grid; a tie that rounds the other way moves one product by a
        # 254th of its block's range, hence 1e-3 of the norm where a wrong layout would give order 1.
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(("bits", "rounding"), OTHER_FORMS)
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(256, 8), (33, 7), (200, 5)])
def test_zero_points_offsets_and_planes_equal_their_numpy_reference(
    linear_model, run, rng, bits: int, rounding: str, block_size: int, num_inputs: int, num_outputs: int
) -> None:
    model, form = linear_model(num_inputs, num_outputs), Form(bits, block_size, rounding)
    rows = find_linears(model.graph)[0].rows().copy()
    MatMulNBits({"w": form})(model)
    for num_rows in (1, 5, 33):
        x = 2 + rng.standard_normal((num_rows, num_inputs)).astype(np.float32)
        (found,) = run(model, x=x)
        expected = reference(x, rows, form)
        # As above: both round activations to int8, and ties may fall either way.
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(("bits", "rounding"), [*OTHER_FORMS, (2, "rtn"), (4, "rtn"), (8, "rtn")])
@pytest.mark.parametrize(("num_inputs", "block_size"), [(256, 64), (33, 32), (200, 128)])
def test_the_codes_stand_for_the_matrix_that_the_rounding_says(
    linear_model, run, rng, bits: int, rounding: str, num_inputs: int, block_size: int
) -> None:
    model = linear_model(num_inputs, 7)
    rows = find_linears(model.graph)[0].rows().copy()
    MatMulNBits({"w": Form(bits, block_size, rounding)})(model)
    weights = load_rounding(rounding)(rows, bits, block_size).weights(num_inputs)
    x = 2 + rng.standard_normal((5, num_inputs)).astype(np.float32)
    # Activations are int8 here, by blocks: 2 % of the product's norm is three times what that costs.
    int8_activations = run(model, x=x)[0]
    assert np.linalg.norm(int8_activations - x @ weights.T) < 2e-2 * np.linalg.norm(x @ weights.T)
    for node in model.graph:
        if node.op_type == "MatMulNBits":  # the slow kernel, which no user gets: it shows the codes as they are
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    np.testing.assert_allclose(run(model, x=x)[0], x @ weights.T, rtol=1e-5, atol=1e-4)


def test_offsets_add_to_inputs_of_any_rank(model_of, run, rng) -> None:
    rows = rng.standard_normal((6, 40)).astype(np.float32) + 1
    model = model_of({"x": (FLOAT, ["B", "T", 40])}, [("MatMul", ["x", "w"], "y", {})], {"w": rows.T.copy()}, ["y"])
    MatMulNBits({"w": Form(2, 32, "ternary-mean")})(model)
    x = rng.standard_normal((2, 3, 40)).astype(np.float32)
    expected = reference(x, rows, Form(2, 32, "ternary-mean"))
    assert np.linalg.norm(run(model, x=x)[0] - expected) < 1e-3 * np.linalg.norm(expected)


def test_layers_that_read_one_input_share_its_block_sums(model_of, run, rng) -> None:
    weights = {name: rng.standard_normal((64, 8)).astype(np.float32) + 1 for name in ("q", "k")}
    nodes = [("MatMul", ["x", "q"], "a", {}), ("MatMul", ["x", "k"], "b", {}), ("Add", ["a", "b"], "y", {})]
    model = model_of({"x": (FLOAT, ["M", 64])}, nodes, weights, ["y"])
    MatMulNBits(dict.fromkeys(weights, Form(2, 32, "ternary-mean")))(model)
    assert [node.op_type for node in model.graph].count("MatMul") == 1 + 2  # the sums, and one product of offsets each
    x = rng.standard_normal((3, 64)).astype(np.float32)
    expected = sum(reference(x, weight.T, Form(2, 32, "ternary-mean")) for weight in weights.values())
    assert np.linalg.norm(run(model, x=x)[0] - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(("bits", "rounding"), [(4, "rtn"), OFFSETS, PLANES])
def test_the_bias_of_a_gemm_is_added(model_of, run, rng, bits: int, rounding: str) -> None:
    rows, bias = rng.standard_normal((7, 40)).astype(np.float32), 9 * rng.standard_normal(7).astype(np.float32)
    nodes = [("Gemm", ["x", "w", "b"], "y", {"transB": 1})]
    model = model_of({"x": (FLOAT, ["M", 40])}, nodes, {"w": rows, "b": bias}, ["y"])
    MatMulNBits({"w": Form(bits, 32, rounding)})(model)
    x = rng.standard_normal((4, 40)).astype(np.float32)
    expected = reference(x, rows, Form(bits, 32, rounding)) + bias
    assert np.linalg.norm(run(model, x=x)[0] - expected) < 1e-3 * np.linalg.norm(expected)


def test_a_ternary_matrix_is_multiplied_exactly_but_for_int8_activations(model_of, run, rng) -> None:
    rows = np.float32(0.37) * rng.integers(-1, 2, (5, 128)).astype(np.float32)
    model = model_of({"x": (FLOAT, ["M", 128])}, [("MatMul", ["x", "w"], "y", {})], {"w": rows.T.copy()}, ["y"])
    MatMulNBits({"w": Form(2, 64, "ternary")})(model)
    x = np.concatenate([rng.integers(-127, 128, (3, 126)), np.full((3, 2), 127)], axis=1).astype(np.float32)
    x[:, 0] = 127  # the peak of both blocks, so that int8 holds the integers as they are
    # Integer activations times trits: nothing is rounded but the last multiplication by the scale.
    np.testing.assert_allclose(run(model, x=x)[0], x @ rows.T, rtol=1e-5, atol=1e-3)


def test_calibration_reaches_the_rounding(linear_model, run, rng) -> None:
    model, form = linear_model(64, 8), Form(4, 32, "gptq")
    rows = find_linears(model.graph)[0].rows().copy()
    mixing = rng.standard_normal((16, 64)).astype(np.float32)
    inputs = InputStatistics(16, np.abs(mixing).max(0), mixing.T @ mixing / 16)
    MatMulNBits({"w": form}, {"w": inputs})(model)
    x = rng.standard_normal((4, 16)).astype(np.float32) @ mixing
    (found,) = run(model, x=x)
    expected = reference(x, rows, form, inputs=inputs)
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
    plain = reference(x, rows, Form(4, 32))
    assert np.linalg.norm(found - x @ rows.T) < 0.8 * np.linalg.norm(plain - x @ rows.T)


def test_added_weights_take_no_name_that_the_graph_has(model_of, run, rng) -> None:
    weights = {"w": rng.standard_normal((32, 4)).astype(np.float32), "w.scale": np.full(4, 5, np.float32)}
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Mul", ["h", "w.scale"], "y", {})]
    model = model_of({"x": (FLOAT, ["M", 32])}, nodes, weights, ["y"])
    MatMulNBits({"w": Form(4, 32)})(model)
    x = rng.standard_normal((2, 32)).astype(np.float32)
    expected = 5 * reference(x, weights["w"].T, Form(4, 32))
    assert np.linalg.norm(run(model, x=x)[0] - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_float_activations_equal_the_reference_to_rounding(linear_model, run, rng, block_size: int) -> None:
    model, form = linear_model(72, 9), Form(4, block_size)
    rows = find_linears(model.graph)[0].rows().copy()
    MatMulNBits({"w": form}, accuracy_level=0)(model)
    x = rng.standard_normal((5, 72)).astype(np.float32)
    # Sums of 72 float32 products in another order.
    np.testing.assert_allclose(run(model, x=x)[0], reference(x, rows, form, 0), rtol=1e-5, atol=1e-5)


def test_a_weight_read_by_two_layers_is_packed_once(model_of, run, rng) -> None:
    weights = {"w": rng.standard_normal((32, 32)).astype(np.float32)}
    nodes = [("MatMul", ["x", "w"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    model = model_of({"x": (FLOAT, ["M", 32])}, nodes, weights, ["y"])
    MatMulNBits({"w": Form(4, 32)})(model)
    assert sorted(model.graph.initializers) == ["w.int4", "w.scale"]
    assert run(model, x=np.ones((2, 32), np.float32))[0].shape == (2, 32)


@pytest.mark.parametrize(
    ("bits", "block_size", "accuracy_level", "told"),
    [
        (8, 32, 0, "100 times slower"),
        (2, 32, 3, "100 times slower"),
        (2, 16, 4, "no fast CPU kernel"),
        (2, 256, 4, "no fast CPU kernel"),
        (4, 48, 4, "power of two"),
        (4, 8, 4, "power of two"),
        (3, 32, 4, "not 3"),
    ],
)
def test_known_cliffs_are_refused(bits: int, block_size: int, accuracy_level: int, told: str) -> None:
    with pytest.raises(QuantizationError, match=told):
        MatMulNBits({"w": Form(bits, block_size)}, accuracy_level=accuracy_level)


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (Form(4, 32, "ternary"), "w: the rounding ternary makes codes of 2 bits, not 4"),
        (Form(4, 32, "gptq"), "w: the rounding gptq needs the Gram"),
        (Form(4, 32, "nearest"), "unknown rounding 'nearest'; known: rtn, "),
    ],
)
def test_forms_that_their_rounding_cannot_make_are_refused(form: Form, told: str) -> None:
    with pytest.raises(QuantizationError, match=told):
        MatMulNBits({"w": form})


def test_a_float_zero_point_is_refused_for_its_speed(linear_model, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_way(rows, bits, block_size, inputs=None):
        zeros = np.full((len(rows), 1), 1.5)
        return BlockCodes(np.zeros((len(rows), block_size), np.uint8), np.ones((len(rows), 1), np.float32), bits, zeros)

    half_way.widths, half_way.needs_gram = (2,), False  # type: ignore[attr-defined]
    monkeypatch.setattr(layer_codes, "load_rounding", lambda name: half_way)
    with pytest.raises(QuantizationError, match="100 times slower"):
        MatMulNBits({"w": Form(2, 32, "half-way")})(linear_model(32, 4))


def test_weights_that_are_not_finite_are_refused_with_the_layers_name(model_of) -> None:
    weights = {"w": np.full((32, 4), np.inf, np.float32)}
    model = model_of({"x": (FLOAT, ["M", 32])}, [("MatMul", ["x", "w"], "y", {})], weights, ["y"])
    with pytest.raises(QuantizationError, match="w: its weights hold NaN"):
        MatMulNBits({"w": Form(4, 32)})(model)


def test_a_layer_that_the_graph_lacks_is_named(linear_model) -> None:
    with pytest.raises(QuantizationError, match="elsewhere"):
        MatMulNBits({"elsewhere": Form(4, 32)})(linear_model(32, 4))
