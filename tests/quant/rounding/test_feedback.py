from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import QuantizationError
from graphs.layers import Float32
from quant.calibration.statistics import InputStatistics
from quant.rounding.table import load_rounding

PUBLISHED_DAMPING = 0.01  # of the mean diagonal (GPTQ, arXiv 2210.17323); written out, so that a change of ours shows
FED_BACK = {
    "gptq": "rtn",
    "gptq-positive": "rtn-positive",
    "ternary-gptq": "ternary",
}


def correlated(rng: np.random.Generator, num_inputs: int) -> InputStatistics:
    mixing = rng.standard_normal((max(2, num_inputs // 4), num_inputs))
    x = rng.standard_normal((4 * num_inputs, len(mixing))) @ mixing + 0.3 * rng.standard_normal(
        (4 * num_inputs, num_inputs)
    )
    return InputStatistics(len(x), np.abs(x).max(0).astype(np.float32), (x.T @ x / len(x)).astype(np.float32))


def output_error(found: Float32, rows: Float32, inputs: InputStatistics) -> float:
    change = (found - rows).astype(np.float64)
    assert inputs.gram is not None
    return float(np.einsum("nk,kl,nl->", change, inputs.gram.astype(np.float64), change))


def textbook(rows: Float32, gram: Float32, bits: int, block_size: int) -> Float32:
    """GPTQ as published: the upper Cholesky factor of the inverse, one column at a time, all in float64."""
    weights, rounded = rows.astype(np.float64), np.zeros(rows.shape)
    damped = gram.astype(np.float64) + PUBLISHED_DAMPING * np.mean(np.diagonal(gram)) * np.eye(len(gram))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    zero = 1 << (bits - 1)
    for j in range(rows.shape[1]):
        if j % block_size == 0:
            block = weights[:, j : j + block_size]
            scales = block[np.arange(len(block)), np.abs(block).argmax(1)] / -zero
        rounded[:, j] = np.clip(np.round(weights[:, j] / scales), -zero, zero - 1) * scales
        weights[:, j:] -= np.outer((weights[:, j] - rounded[:, j]) / upper[j, j], upper[j, j:])
    return rounded


@pytest.mark.parametrize(("bits", "block_size", "num_inputs"), [(4, 16, 48), (4, 32, 40), (2, 32, 64), (8, 16, 16)])
def test_gptq_equals_the_published_loop(bits: int, block_size: int, num_inputs: int) -> None:
    rng = np.random.default_rng(bits + num_inputs)
    rows = rng.standard_normal((6, num_inputs)).astype(np.float32)
    inputs = correlated(rng, num_inputs)
    found = load_rounding("gptq")(rows, bits, block_size, inputs).weights(num_inputs)
    # Float32 against float64: 1e-4 unless a weight lies on a tie, which no weight of these seeds does.
    np.testing.assert_allclose(found, textbook(rows, inputs.gram, bits, block_size), rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(FED_BACK)),
    seed=st.integers(0, 2**16),
    num_inputs=st.sampled_from([40, 64, 96]),
    block_size=st.sampled_from([16, 32, 64]),
)
def test_on_correlated_inputs_feedback_never_errs_more_at_the_output(
    name: str, seed: int, num_inputs: int, block_size: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((16, num_inputs)).astype(np.float32)
    inputs = correlated(rng, num_inputs)
    bits = load_rounding(name).widths[0]
    fed_back = load_rounding(name)(rows, bits, block_size, inputs).weights(num_inputs)
    plain = load_rounding(FED_BACK[name])(rows, bits, block_size).weights(num_inputs)
    assert output_error(fed_back, rows, inputs) <= output_error(plain, rows, inputs)


@pytest.mark.parametrize("name", ["gptq-zeros", "gptq-coded"])
def test_default_4_bits_spend_less_of_other_directions_on_the_loud_ones(name: str) -> None:
    """Loud directions count for less at the end of a real decoder than in the error of one layer's outputs."""
    rng = np.random.default_rng(11)
    rows, inputs = rng.standard_normal((64, 96)).astype(np.float32), correlated(rng, 96)
    even = replace(inputs, gram=np.eye(96, dtype=np.float32))
    rounding = load_rounding(name)
    found, usual, unfed = (
        each(rows, 4, 32, fitted).weights(96)
        for each, fitted in (
            (rounding, inputs),
            (replace(rounding, damping=PUBLISHED_DAMPING), inputs),
            (rounding, even),
        )
    )
    assert output_error(found, rows, even) < output_error(usual, rows, even)
    assert output_error(found, rows, inputs) < 0.8 * output_error(unfed, rows, inputs)


@pytest.mark.parametrize("name", sorted(FED_BACK))
def test_uncorrelated_inputs_leave_nothing_to_feed_back(name: str) -> None:
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((8, 80)).astype(np.float32)
    inputs = InputStatistics(9, np.ones(80, np.float32), np.diag(rng.uniform(0.5, 2, 80)).astype(np.float32))
    bits = load_rounding(name).widths[0]
    found, plain = load_rounding(name)(rows, bits, 32, inputs), load_rounding(FED_BACK[name])(rows, bits, 32)
    np.testing.assert_array_equal(found.codes, plain.codes)


def test_channels_that_never_spoke_are_rounded_plainly() -> None:
    rows = np.random.default_rng(6).standard_normal((3, 32)).astype(np.float32)
    silent = InputStatistics(9, np.zeros(32, np.float32), np.zeros((32, 32), np.float32))
    found = load_rounding("gptq")(rows, 4, 16, silent)
    np.testing.assert_array_equal(found.codes, load_rounding("rtn")(rows, 4, 16).codes)


def test_weights_that_are_not_finite_are_refused() -> None:
    inputs = InputStatistics(9, np.ones(16, np.float32), np.eye(16, dtype=np.float32))
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        load_rounding("gptq")(np.full((2, 16), np.nan, np.float32), 4, 16, inputs)


def test_the_weights_given_are_left_as_they_were() -> None:
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((4, 48)).astype(np.float32)
    before = rows.copy()
    load_rounding("gptq")(rows, 4, 16, correlated(rng, 48))
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (None, "needs calibration"),
        (InputStatistics(1, np.ones(8, np.float32)), "needs calibration"),
        (InputStatistics(1, np.ones(8, np.float32), np.eye(8, dtype=np.float32)), r"\(8, 8\) for a layer of 16"),
        (InputStatistics(1, np.ones(16, np.float32), np.full((16, 16), np.nan, np.float32)), "NaN or infinite"),
    ],
)
def test_feedback_without_a_fitting_gram_is_refused(inputs: InputStatistics | None, told: str) -> None:
    with pytest.raises(QuantizationError, match=told):
        load_rounding("gptq")(np.ones((2, 16), np.float32), 4, 16, inputs)
