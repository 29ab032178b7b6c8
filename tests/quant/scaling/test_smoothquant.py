from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import find_linears
from quant.calibration.statistics import InputStatistics
from quant.scaling.folding import find_folds
from quant.scaling.smoothquant import divisors, smooth

FLOAT = ir.DataType.FLOAT


@pytest.fixture
def norm_and_linear(model_of, rng):
    weights = {"g": np.ones(8, np.float32), "w": rng.standard_normal((8, 4)).astype(np.float32)}
    nodes = [("RMSNormalization", ["x", "g"], "n", {"axis": -1}), ("MatMul", ["n", "w"], "y", {})]
    return model_of({"x": (FLOAT, ["M", 8])}, nodes, weights, ["y"], opset=23)


def test_divisors_are_the_paper_s_quotient(norm_and_linear, rng) -> None:
    (fold,) = find_folds(norm_and_linear.graph)
    peaks = rng.uniform(1, 50, 8).astype(np.float32)
    tops = np.abs(fold.readers[0].rows()).max(axis=0)
    for strength in (0.25, 0.5, 0.75):
        expected = peaks**strength / tops ** (1 - strength)
        np.testing.assert_allclose(divisors(fold, fold.readers, peaks, strength), expected, rtol=1e-6)


def test_at_half_strength_activations_and_weights_have_the_same_peaks(norm_and_linear, rng) -> None:
    inputs = {"w": InputStatistics(1, rng.uniform(1, 50, 8).astype(np.float32))}
    scaled = smooth(norm_and_linear, {"w": Form(8)}, inputs)
    rows = find_linears(norm_and_linear.graph)[0].rows()
    np.testing.assert_allclose(scaled["w"].peaks, np.abs(rows).max(axis=0), rtol=1e-5)


def test_a_channel_that_is_never_active_stays_as_it_was(norm_and_linear) -> None:
    (fold,) = find_folds(norm_and_linear.graph)
    found = divisors(fold, fold.readers, np.array([0, 4, 1, 1, 1, 1, 1, 1], np.float32))
    assert found[0] == 1
    assert np.isfinite(found).all()


def test_layers_that_keep_their_weights_are_not_smoothed(norm_and_linear) -> None:
    before = find_linears(norm_and_linear.graph)[0].rows().copy()
    smooth(norm_and_linear, {}, {})
    np.testing.assert_array_equal(find_linears(norm_and_linear.graph)[0].rows(), before)


def test_without_calibration_it_says_what_is_missing(norm_and_linear) -> None:
    with pytest.raises(QuantizationError, match="w: smoothquant needs calibration samples"):
        smooth(norm_and_linear, {"w": Form(8)}, {})


@pytest.mark.parametrize("component", ["vision_encoder", "decoder"])
def test_smoothing_leaves_the_float_outputs_as_they_were(
    graph_of, feeds_of, statistics_of, run, component: str
) -> None:
    model = graph_of("smolvlm", "contrib", component)
    feeds = feeds_of(model)
    expected = run(model, **feeds)
    forms = {linear.name: Form(8) for linear in find_linears(model.graph)}
    smooth(model, forms, statistics_of(model, feeds))
    for found, before in zip(run(model, **feeds), expected, strict=True):
        # Only the rounding of float32 products differs.
        assert np.abs(found - before).max() < 1e-5 * np.abs(before).max()
