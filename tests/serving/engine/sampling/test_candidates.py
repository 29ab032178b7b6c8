import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.sampling.candidates import place_of


@given(st.lists(st.sampled_from([0.0, 0.125, 0.5, 1.0]), min_size=1, max_size=1200), st.floats(0, 1, exclude_max=True))
def test_a_draw_falls_where_the_running_sum_passes_it(weights: list[float], drawn: float) -> None:
    weights[len(weights) // 2] = 1.0
    row = np.array(weights, np.float32)
    expected = np.searchsorted(np.cumsum(row, dtype=np.float64), drawn * row.sum(dtype=np.float64), side="right")
    assert place_of(row, drawn) == expected  # eighths: every sum is exact


@pytest.mark.parametrize("length", [1, 255, 256, 257, 5000])
def test_the_last_draw_of_all_takes_a_token_that_may_be_drawn(length: int) -> None:
    row = np.zeros(length, np.float32)
    row[0] = np.float32(0.1)
    assert place_of(row, np.nextafter(1.0, 0.0)) == 0
