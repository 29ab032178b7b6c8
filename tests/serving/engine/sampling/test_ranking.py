import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.sampling.ranking import largest_ids


@given(st.integers(1, 3), st.integers(1, 3000), st.integers(0, 10**6), st.data())
def test_the_largest_are_those_of_a_full_sort(num_rows: int, width: int, seed: int, data) -> None:
    rows = np.random.default_rng(seed).permuted(np.tile(np.arange(width, dtype=np.float32), (num_rows, 1)), axis=1)
    count = data.draw(st.integers(1, width))
    assert largest_ids(rows, count).tolist() == np.argsort(-rows, axis=1, kind="stable")[:, :count].tolist()


def test_rows_with_forbidden_tokens_are_ranked_too() -> None:
    rows = np.full((1, 5000), -np.inf, np.float32)
    rows[0, [4999, 17]] = 1, 2
    assert largest_ids(rows, 2).tolist() == [[17, 4999]]
