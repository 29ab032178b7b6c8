from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.rounding.planes import PlaneGrid, refined, round_to_planes, squared_error
from quant.rounding.ternary import BITS, round_to_ternary


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


@settings(max_examples=40, deadline=None)
@given(first=st.floats(0.1, 3), second=st.floats(0.01, 3), seed=st.integers(0, 2**16))
def test_every_weight_gets_the_nearest_of_the_nine_sums(first: float, second: float, seed: int) -> None:
    weights = 2 * np.random.default_rng(seed).standard_normal((1, 40)).astype(np.float32)
    found = PlaneGrid(column(first), column(second)).encode(weights).weights(40)
    sums = np.float32(first) * np.array([-1, 0, 1])[:, None] + np.float32(second) * np.array([-1, 0, 1])
    least = np.abs(weights[0][:, None] - sums.reshape(1, -1)).min(axis=1)
    np.testing.assert_allclose(np.abs(found - weights)[0], least, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(first=st.floats(0.1, 3), second=st.floats(0.01, 3), seed=st.integers(0, 2**16))
def test_no_turn_raises_the_squared_error(first: float, second: float, seed: int) -> None:
    blocks = np.random.default_rng(seed).standard_normal((3, 32)).astype(np.float32)
    grid, errors = PlaneGrid(column(*[first] * 3), column(*[second] * 3)), []
    for _ in range(6):
        errors.append(squared_error(grid, blocks))
        grid = refined(grid, blocks)
    assert np.all(np.diff(errors, axis=0) <= 1e-5 * np.square(blocks).sum())  # float32 sums


def test_the_second_plane_takes_six_sevenths_of_what_the_first_leaves() -> None:
    rows = np.random.default_rng(1).standard_normal((32, 512)).astype(np.float32)
    errors = [
        np.square(rounding(rows, BITS, 128).weights(512) - rows).mean()
        for rounding in (round_to_planes, round_to_ternary)
    ]
    assert errors[0] < errors[1] / 6  # 0.028 against 0.187 of the energy


def test_a_sum_of_two_ternary_matrices_is_found() -> None:
    rng = np.random.default_rng(2)
    rows = 3 * rng.integers(-1, 2, (4, 64)).astype(np.float32) + rng.integers(-1, 2, (4, 64)).astype(np.float32)
    np.testing.assert_allclose(round_to_planes(rows, BITS, 64).weights(64), rows, atol=1e-5)
