from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.layers import Float32
from quant.rounding.alignment import aligned
from quant.rounding.rtn import round_to_nearest
from quant.rounding.ternary import round_to_ternary


def gram_of(rng: np.random.Generator, num_inputs: int) -> Float32:
    x = rng.standard_normal((3 * num_inputs, num_inputs)) @ rng.standard_normal((num_inputs, num_inputs))
    return (x.T @ x / len(x)).astype(np.float32)


def output_errors(found: Float32, rows: Float32, gram: Float32) -> Float32:
    change = (found - rows).astype(np.float64)
    return np.einsum("nk,kl,nl->n", change, gram.astype(np.float64), change)


@settings(max_examples=40, deadline=None)
@given(num_inputs=st.sampled_from([20, 64, 72]), bits=st.sampled_from([2, 4]), seed=st.integers(0, 2**16))
def test_no_row_errs_more_at_the_output_and_its_codes_stay(num_inputs: int, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, gram = rng.standard_normal((6, num_inputs)).astype(np.float32), gram_of(rng, num_inputs)
    before = round_to_nearest(rows, bits, 16)
    after = aligned(before, rows, gram)
    np.testing.assert_array_equal(after.codes, before.codes)
    first, then = (output_errors(codes.weights(num_inputs), rows, gram) for codes in (before, after))
    assert np.all(then <= first * 1.0001)


def test_scales_equal_those_of_least_squares_on_the_samples() -> None:
    rng = np.random.default_rng(1)
    x, row = rng.standard_normal((200, 48)), rng.standard_normal((1, 48)).astype(np.float32)
    codes = round_to_ternary(row, 2, 16)
    steps = codes.codes.reshape(3, 16).astype(np.float64) - 2
    by_block = np.stack([x[:, 16 * at : 16 * at + 16] @ steps[at] for at in range(3)], axis=1)
    expected = np.linalg.lstsq(by_block, x @ row[0], rcond=None)[0]
    found = aligned(codes, row, (x.T @ x / 200).astype(np.float32))
    np.testing.assert_allclose(found.scales[0], expected, rtol=1e-4)


def test_a_block_of_zeros_keeps_its_scale_and_its_neighbour_gets_its_own() -> None:
    rng = np.random.default_rng(2)
    rows, gram = rng.standard_normal((1, 32)).astype(np.float32), gram_of(rng, 32)
    rows[:, :16] = 0
    found = aligned(round_to_ternary(rows, 2, 16), rows, gram)
    alone = aligned(round_to_ternary(rows[:, 16:], 2, 16), rows[:, 16:], gram[16:, 16:])
    assert found.scales[0, 0] == 0
    assert found.scales[0, 1] == pytest.approx(alone.scales[0, 0], rel=1e-4)


def test_rows_are_aligned_one_by_one_however_many_there_are() -> None:
    rng = np.random.default_rng(4)
    rows, gram = rng.standard_normal((1030, 40)).astype(np.float32), gram_of(rng, 40)
    codes = round_to_ternary(rows, 2, 16)
    found = aligned(codes, rows, gram).scales
    for at in (0, 511, 512, 1023, 1024, 1029):  # slabs hold 512 rows
        one = slice(at, at + 1)
        alone = aligned(codes.map(lambda array, one=one: array[one]), rows[one], gram)
        np.testing.assert_allclose(found[one], alone.scales, rtol=1e-4)
