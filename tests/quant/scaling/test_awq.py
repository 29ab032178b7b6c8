from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import find_linears
from quant.calibration.statistics import InputStatistics
from quant.rounding.rtn import round_to_nearest
from quant.scaling.awq import protect

FLOAT = ir.DataType.FLOAT
FORM = Form(4, 32)


@pytest.fixture
def norm_and_linear(model_of, rng):
    weights = {"g": np.ones(64, np.float32), "w": rng.standard_normal((64, 24)).astype(np.float32)}
    nodes = [("RMSNormalization", ["x", "g"], "n", {"axis": -1}), ("MatMul", ["n", "w"], "y", {})]
    return model_of({"x": (FLOAT, ["M", 64])}, nodes, weights, ["y"], opset=23)


def statistics(x) -> InputStatistics:
    return InputStatistics(len(x), np.abs(x).max(axis=0), x.T @ x / np.float32(len(x)))


def output_error(x, exact, rows) -> float:
    return float(np.square(x @ (round_to_nearest(rows, 4, 32).weights(64) - exact).T).sum(axis=1).mean())


def test_the_error_on_the_calibration_rows_falls_where_channels_are_loud(norm_and_linear, rng) -> None:
    rows = find_linears(norm_and_linear.graph)[0].rows().copy()
    x = rng.standard_normal((200, 64)).astype(np.float32)
    x[:, [5, 40]] *= 30
    scaled = protect(norm_and_linear, {"w": FORM}, {"w": statistics(x)})
    found_rows = find_linears(norm_and_linear.graph)[0].rows()
    spread = norm_and_linear.graph.initializers["g"].const_value.numpy()  # the norm's scale took up 1/s
    found = output_error(x * spread, found_rows, found_rows)
    # Two of 64 channels carry nearly all of the error, and each has 30 times the room for it that the others have.
    assert found < 0.35 * output_error(x, rows, rows)
    np.testing.assert_allclose(scaled["w"].peaks, np.abs(x * spread).max(axis=0), rtol=1e-5)


def test_it_is_never_worse_than_unscaled_on_the_calibration_rows(norm_and_linear, rng) -> None:
    rows = find_linears(norm_and_linear.graph)[0].rows().copy()
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((200, 64)).astype(np.float32)
        protect(norm_and_linear, {"w": FORM}, {"w": statistics(x)})
        found = find_linears(norm_and_linear.graph)[0].rows()
        spread = norm_and_linear.graph.initializers["g"].const_value.numpy()
        # 1e-5: the Gram is summed in another order than the outputs.
        assert output_error(x * spread, found, found) <= output_error(x, rows, rows) * (1 + 1e-5)
        norm_and_linear.graph.initializers["g"].const_value = ir.tensor(np.ones(64, np.float32))
        norm_and_linear.graph.initializers["w"].const_value = ir.tensor(rows.T.copy())


def test_without_grams_it_says_what_is_missing(norm_and_linear) -> None:
    peaks = {"w": InputStatistics(1, np.ones(64, np.float32))}
    with pytest.raises(QuantizationError, match="w: awq needs the Gram"):
        protect(norm_and_linear, {"w": FORM}, peaks)
    with pytest.raises(QuantizationError, match="w: awq needs calibration samples"):
        protect(norm_and_linear, {"w": FORM}, {})


def test_the_search_for_error_feedback_rounds_to_nearest(norm_and_linear, rng) -> None:
    x = rng.standard_normal((200, 64)).astype(np.float32)
    x[:, [5, 40]] *= 30
    found = []
    for rounding in ("rtn", "gptq"):
        model = norm_and_linear.clone()
        protect(model, {"w": Form(4, 32, rounding)}, {"w": statistics(x)})
        found.append(model.graph.initializers["g"].const_value.numpy())
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], np.ones(64))
