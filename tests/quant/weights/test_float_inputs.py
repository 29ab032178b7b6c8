from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.store import weight_bytes
from quant.calibration.statistics import InputStatistics
from quant.planning.plan import Choice, bytes_of
from quant.rounding.table import load_rounding
from quant.weights import gather_blocks, matmul_nbits, qdq_int4, w8a8
from quant.weights.doubled_inputs import double_rows, shortened
from quant.weights.float_inputs import split_rows

FLOAT = ir.DataType.FLOAT
K, N = 64, 32
LOUD = [5, 40, 41]


@pytest.fixture
def x(rng):
    """Rows with three channels a thousand times louder than the rest."""
    rows = rng.standard_normal((24, K)).astype(np.float32)
    rows[:, LOUD] *= 1000
    return rows


@pytest.fixture
def inputs(x):
    return InputStatistics(len(x), np.abs(x).max(axis=0), x.T @ x / np.float32(len(x)))


@pytest.fixture
def rows(rng):
    return rng.standard_normal((N, K)).astype(np.float32)


@pytest.fixture
def linear(model_of, rows):
    return lambda opset=21: model_of(
        {"x": (FLOAT, ["B", "T", K])}, [("MatMul", ["x", "w"], "y", {})], {"w": rows.T.copy()}, ["y"], opset=opset
    )


PASSES = {
    "w8a8": (w8a8.PerTokenInt8, w8a8.reference, Form(8, float_inputs=8)),
    "w8a8 gptq": (w8a8.PerTokenInt8, w8a8.reference, Form(8, None, "gptq", 8)),
    "8 bits": (matmul_nbits.MatMulNBits, matmul_nbits.reference, Form(8, 32, "gptq", 8)),
    "4 bits": (matmul_nbits.MatMulNBits, matmul_nbits.reference, Form(4, 32, "gptq-zeros", 8)),
    "4 bits, stored twice": (
        matmul_nbits.MatMulNBits,
        matmul_nbits.reference,
        Form(4, 32, "gptq-coded", doubled_inputs=32),
    ),
    "4 bits, standard operators": (qdq_int4.DequantizedInt4, qdq_int4.reference, Form(4, 32, "gptq", 8)),
}


@pytest.mark.parametrize("name", PASSES)
def test_the_graph_computes_its_reference(linear, run, x, inputs, rows, name: str) -> None:
    scheme, reference, form = PASSES[name]
    model = linear()
    scheme({"w": form}, {"w": inputs})(model)
    (found,) = run(model, x=x.reshape(2, 12, K))
    expected = reference(x, rows, form, inputs=inputs).reshape(2, 12, N)
    # Sums of float32 products in another order; ONNX Runtime rounds a step in ten thousand to the other side.
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", PASSES)
def test_what_loud_channels_cost_the_quiet_ones_is_gone(x, inputs, rows, name: str) -> None:
    _, reference, form = PASSES[name]
    quiet = x.copy()
    quiet[:, LOUD] = 0
    exact = quiet @ rows.T
    plain = Form(form.bits, form.block_size, "rtn")

    def loss(form: Form) -> float:
        """The error of what quiet channels give, in a product of quiet and loud ones."""
        found = reference(x, rows, form, inputs=inputs) - x[:, LOUD] @ rows[:, LOUD].T
        return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

    # Float16 holds the loud channels' weights to 2^-12, and they are a thousand times louder.
    assert loss(plain) > 4 * loss(form)


def test_the_loudest_are_taken_and_the_rest_is_told_what_they_take_up(rows, inputs) -> None:
    split = split_rows(rows, Form(8, None, "gptq", 3), inputs)
    assert split.channels.tolist() == LOUD
    assert not split.rows[:, LOUD].any()
    left = split.inputs.gram
    assert not left[LOUD].any()
    assert not left[:, LOUD].any()
    # The Schur complement of the loud channels, by inverting the whole.
    quiet = [at for at in range(K) if at not in LOUD]
    raised = inputs.gram.astype(np.float64) + np.eye(K) * 1e-9
    complement = np.linalg.inv(np.linalg.inv(raised)[np.ix_(quiet, quiet)])
    # A ridge of 1e-4 of the loud channels' energy is what they do not take up.
    np.testing.assert_allclose(left[np.ix_(quiet, quiet)], complement, atol=2e-2)


def test_float_channels_take_up_the_error_of_the_rounded_ones(rng, rows) -> None:
    base = rng.standard_normal((400, 3)).astype(np.float32)
    x = np.concatenate([base @ rng.standard_normal((3, K - 3)).astype(np.float32), 50 * base], axis=1)
    inputs = InputStatistics(len(x), np.abs(x).max(axis=0), x.T @ x / np.float32(len(x)))
    split = split_rows(rows, Form(4, 32, "rtn", 3), inputs)
    rounded = np.round(split.rows)
    whole = rounded.copy()
    whole[:, split.channels] = split.finished(rounded)
    alone = rounded.copy()
    alone[:, split.channels] = split.float_rows
    exact = x @ rows.T
    # Every quiet channel is a sum of the loud ones: they make its error up but for the ridge.
    assert np.linalg.norm(x @ whole.T - exact) < 0.02 * np.linalg.norm(x @ alone.T - exact)


def test_layers_that_read_one_input_take_it_apart_once(model_of, rng, inputs) -> None:
    weights = {name: rng.standard_normal((K, N)).astype(np.float32) for name in ("a", "b")}
    nodes = [("MatMul", ["x", name], f"y_{name}", {}) for name in weights]
    model = model_of({"x": (FLOAT, ["M", K])}, nodes, weights, ["y_a", "y_b"], opset=21)
    form = Form(8, None, "gptq", 8)
    w8a8.PerTokenInt8(dict.fromkeys(weights, form), dict.fromkeys(weights, inputs))(model)
    assert [node.op_type for node in model.graph].count("Gather") == 1


@pytest.mark.parametrize("form", [Form(4, 32, "gptq-zeros", 8), Form(4, 32, "gptq-coded", doubled_inputs=32)])
def test_a_table_has_the_bytes_of_the_head_that_it_is_tied_to(model_of, run, rng, rows, inputs, form: Form) -> None:
    head = model_of({"x": (FLOAT, ["M", K])}, [("MatMul", ["x", "w"], "y", {})], {"w": rows.T.copy()}, ["y"], opset=21)
    table = model_of(
        {"ids": (ir.DataType.INT64, ["M"])}, [("Gather", ["w", "ids"], "y", {"axis": 0})], {"w": rows}, ["y"], opset=21
    )
    matmul_nbits.MatMulNBits({"w": form}, {"w": inputs})(head)
    gather_blocks.GatherBlocks({"w": form}, {"w": inputs})(table)
    stored = [
        {value.const_value.tobytes() for value in model.graph.initializers.values() if value.const_value.nbytes >= N}
        for model in (head, table)
    ]
    # Codes, scales, zero points, and columns in float or the steps of scales
    assert len(stored[0] & stored[1]) == 4
    ids = rng.integers(0, N, 9)
    (found,) = run(table, ids=ids)
    np.testing.assert_allclose(found, gather_blocks.reference(ids, rows, form, inputs), atol=1e-6)


def test_doubled_weights_are_as_fine_as_codes_of_twice_the_bits(rows, inputs) -> None:
    longer = double_rows(rows, Form(4, 32, "gptq-coded", doubled_inputs=32), inputs)
    assert set(LOUD) <= set(longer.channels.tolist())
    codes = load_rounding("gptq-coded")(longer.rows, 4, 32, longer.inputs)
    found = shortened(codes.weights(longer.rows.shape[1]), longer.channels)
    errors = np.abs(found - rows).max(axis=0)
    steps = codes.scales[:, K // 32 :].max(axis=0)  # of the blocks of what is doubled, and of their doubles
    assert steps[1] < steps[0] / 8
    assert errors[LOUD].max() < steps[0] / 8


def test_inputs_that_do_not_fill_blocks_are_not_doubled(rows, inputs) -> None:
    with pytest.raises(QuantizationError, match="8 of 64 inputs stored twice do not fill blocks of 32"):
        double_rows(rows, Form(4, 32, "gptq-coded", doubled_inputs=8), inputs)


def test_layers_that_read_one_input_double_it_once(model_of, rng, inputs) -> None:
    weights = {name: rng.standard_normal((K, N)).astype(np.float32) for name in ("a", "b")}
    nodes = [("MatMul", ["x", name], f"y_{name}", {}) for name in weights]
    model = model_of({"x": (FLOAT, ["M", K])}, nodes, weights, ["y_a", "y_b"], opset=21)
    form = Form(4, 32, "gptq-coded", doubled_inputs=32)
    matmul_nbits.MatMulNBits(dict.fromkeys(weights, form), dict.fromkeys(weights, inputs))(model)
    assert [node.op_type for node in model.graph].count("Concat") == 1


def test_scales_are_multiplied_when_a_graph_is_loaded_and_not_when_it_runs(linear, run, inputs) -> None:
    model = linear()
    matmul_nbits.MatMulNBits({"w": Form(4, 32, "gptq-coded", doubled_inputs=32)}, {"w": inputs})(model)
    run(model, x=np.zeros((1, 2, K), np.float32))
    assert sorted(run.optimized_ops()) == ["Concat", "Gather", "MatMulNBits", "Mul"]


def test_what_is_planned_is_what_is_stored(linear, inputs) -> None:
    model, form = linear(), Form(4, 32, "gptq-coded", doubled_inputs=32)
    matmul_nbits.MatMulNBits({"w": form}, {"w": inputs})(model)
    assert weight_bytes(model) == bytes_of(Choice("matmul_nbits", form), K, N)


def test_a_row_alone_and_in_a_batch_is_the_same_but_for_the_float_sums(linear, run, x, inputs) -> None:
    model = linear()
    w8a8.PerTokenInt8({"w": Form(8, None, "gptq", 8)}, {"w": inputs})(model)
    (batch,) = run(model, x=x[None])
    alone = np.concatenate([run(model, x=row[None, None])[0] for row in x], axis=1)
    np.testing.assert_allclose(alone, batch, rtol=1e-5, atol=1e-5 * np.abs(batch).max())


def test_without_calibration_nobody_knows_which_inputs_are_loud() -> None:
    with pytest.raises(QuantizationError, match="w: which 8 inputs are loudest is known from calibration alone"):
        w8a8.PerTokenInt8({"w": Form(8, float_inputs=8)})


def test_a_weight_beyond_float16_is_refused(linear, inputs, rows) -> None:
    model = linear()
    rows[0, 5] = 1e6
    model.graph.initializers["w"].const_value = ir.tensor(rows.T.copy(), name="w")
    with pytest.raises(QuantizationError, match="beyond float16"):
        w8a8.PerTokenInt8({"w": Form(8, float_inputs=8)}, {"w": inputs})(model)
