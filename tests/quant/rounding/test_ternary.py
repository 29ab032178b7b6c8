from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.layers import Float32
from quant.rounding.ternary import BITS, fit_optimal, round_to_ternary


def brute_force(block: Float32) -> float:
    """Return the least squared error of any ternary block, by trying every number of weights that are not 0."""
    sizes = np.sort(np.abs(block.astype(np.float64)))[::-1]
    errors = [np.square(sizes).sum()]
    for kept in range(1, len(sizes) + 1):
        level = sizes[:kept].mean()
        errors.append(np.square(sizes[:kept] - level).sum() + np.square(sizes[kept:]).sum())
    return float(min(errors))


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 12), seed=st.integers(0, 2**16), tail=st.sampled_from([1, 3]))
def test_the_sweep_equals_trying_every_count(size: int, seed: int, tail: int) -> None:
    block = (np.random.default_rng(seed).standard_normal(size) ** tail).astype(np.float32)
    found = fit_optimal(block[None], BITS).encode(block[None]).weights(size)[0]
    error = np.square(found.astype(np.float64) - block).sum()
    # One float32 rounding of the level.
    assert error == pytest.approx(brute_force(block), rel=1e-5, abs=1e-9)


def test_a_gaussian_loses_what_theory_says() -> None:
    rows = np.random.default_rng(0).standard_normal((1, 1_000_000)).astype(np.float32)
    grid = fit_optimal(rows, BITS)
    codes = grid.encode(rows)
    # The optimum for a Gaussian in closed form: threshold 0.612 sigma, level 1.224 sigma, 0.1902 of the energy lost,
    # P(|w| < 0.612) = 0.4595 zeros. A million samples spread these by less than 0.002.
    lost = np.square(codes.weights(rows.size) - rows).mean() / np.square(rows).mean()
    assert lost == pytest.approx(0.1902, abs=0.002)
    assert grid.scales.item() == pytest.approx(1.224, abs=0.005)
    assert np.mean(codes.codes == 2) == pytest.approx(0.4595, abs=0.003)


@settings(max_examples=60, deadline=None)
@given(
    level=st.floats(2.0**-20, 2.0**20, width=32),
    zeros=st.floats(0, 1),
    num_inputs=st.integers(1, 300),
    block_size=st.sampled_from([32, 64, 128]),
    per_block=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_matrix_that_is_ternary_already_is_reproduced_bit_for_bit(
    level: float, zeros: float, num_inputs: int, block_size: int, per_block: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    trits = rng.integers(0, 2, (3, num_inputs)) * 2 - 1
    trits[rng.random(trits.shape) < zeros] = 0
    levels = np.full((3, -(-num_inputs // block_size)), level, np.float32)
    if per_block:
        levels *= rng.uniform(0.5, 2, levels.shape).astype(np.float32)
    rows = trits.astype(np.float32) * np.repeat(levels, block_size, axis=1)[:, :num_inputs]
    found = round_to_ternary(rows, BITS, block_size)
    np.testing.assert_array_equal(found.weights(num_inputs), rows)
    np.testing.assert_array_equal(found.codes[:, :num_inputs], trits + 2)


def test_the_free_code_is_never_used() -> None:
    rows = np.random.default_rng(1).standard_normal((8, 128)).astype(np.float32)
    assert np.unique(round_to_ternary(rows, BITS, 64).codes).tolist() == [1, 2, 3]
