from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.rounding.grid import StepGrid
from quant.rounding.ternary import BITS, LOWEST
from quant.rounding.ternary_mean import fit_ternary_mean, refined, round_about_mean


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 2**16), mean=st.floats(-3, 3), scale=st.floats(0.01, 4))
def test_no_turn_raises_the_squared_error(size: int, seed: int, mean: float, scale: float) -> None:
    blocks = np.random.default_rng(seed).standard_normal((5, size)).astype(np.float32) + np.float32(mean)
    start = np.full((5, 1), scale, np.float32)
    grid = StepGrid(start, BITS, offsets=np.zeros((5, 1), np.float32), lowest=LOWEST)
    errors = []
    for _ in range(8):
        errors.append(np.square(grid.encode(blocks).weights(size).astype(np.float64) - blocks).sum(axis=1))
        grid = refined(grid, blocks)
    energy = np.square(blocks).sum(axis=1)
    assert np.all(np.diff(errors, axis=0) <= 1e-5 * energy)  # float32 sums


def test_each_turn_is_the_line_of_least_squares_through_its_trits() -> None:
    blocks = np.random.default_rng(1).standard_normal((1, 50)).astype(np.float32) + 1
    grid = StepGrid(np.ones((1, 1), np.float32), BITS, offsets=np.ones((1, 1), np.float32), lowest=LOWEST)
    trits = grid.encode(blocks).codes[0].astype(np.float64) - 2
    slope, intercept = np.polyfit(trits, blocks[0], 1)
    found = refined(grid, blocks)
    np.testing.assert_allclose([found.scales.item(), found.offsets.item()], [slope, intercept], rtol=1e-5)


def test_a_mean_that_ternary_lacks_is_kept() -> None:
    trits = np.random.default_rng(2).integers(-1, 2, (4, 64)).astype(np.float32)
    rows = np.float32(0.5) * trits + np.float32(3)
    np.testing.assert_allclose(round_about_mean(rows, BITS, 32).weights(64), rows, rtol=1e-5)


def test_a_block_of_one_value_is_exact() -> None:
    blocks = np.full((1, 32), 0.3, np.float32)
    np.testing.assert_allclose(fit_ternary_mean(blocks, BITS).encode(blocks).weights(32), blocks, rtol=1e-6)
