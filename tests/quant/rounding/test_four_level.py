from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.layers import Float32
from quant.rounding.four_level import fit_four_levels, round_to_four_levels


def brute_force(block: Float32) -> float:
    """Return the least squared error over all 4^n assignments, each with its own best scale."""
    weights = block.astype(np.float64)
    steps = np.array(list(product((-2, -1, 0, 1), repeat=len(block))), np.float64)
    explained = np.square(steps @ weights) / np.maximum(np.square(steps).sum(axis=1), 1)
    return float(np.square(weights).sum() - explained.max())


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 6), seed=st.integers(0, 2**16), tail=st.sampled_from([1, 3]))
def test_the_sweep_equals_trying_every_assignment(size: int, seed: int, tail: int) -> None:
    block = (np.random.default_rng(seed).standard_normal(size) ** tail).astype(np.float32)
    found = fit_four_levels(block[None], 2).encode(block[None]).weights(size)[0]
    error = np.square(found.astype(np.float64) - block).sum()
    # The sweep drops the last bit of each weight: 1e-6 of the block's energy.
    assert error == pytest.approx(brute_force(block), rel=1e-5, abs=1e-6 * float(np.square(block).sum()))


def test_a_block_is_turned_round_where_its_heavy_side_is_positive() -> None:
    block = np.array([[2.0, -1.0, 0.0, 1.0] * 8], np.float32)
    found = round_to_four_levels(block, 2, 32)
    np.testing.assert_allclose(found.weights(32), block, rtol=1e-6)
    assert found.scales.item() < 0


def test_four_levels_never_lose_more_than_ternary() -> None:
    from quant.rounding.ternary import round_to_ternary

    rows = np.random.default_rng(3).standard_t(5, (64, 256)).astype(np.float32)
    four, three = (rounding(rows, 2, 64).weights(256) for rounding in (round_to_four_levels, round_to_ternary))
    errors = [np.square(found - rows).reshape(-1, 64).sum(axis=1) for found in (four, three)]
    assert np.all(errors[0] <= errors[1] * 1.00001)  # a ternary block is one that uses three of the four
