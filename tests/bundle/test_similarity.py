from __future__ import annotations

import numpy as np
import pytest

from bundle.errors import ParameterError
from bundle.similarity import similarity


def test_one_vector_each_is_a_dot_product() -> None:
    assert similarity(np.array([3.0, 4.0], np.float32), np.array([1.0, 2.0], np.float32)) == 11


def test_each_vector_of_the_query_counts_by_the_nearest_of_the_document() -> None:
    query = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    document = np.array([[0.5, 0.0], [0.25, 0.75], [0.0, 0.0]], np.float32)
    assert similarity(query, document) == 0.5 + 0.75
    assert similarity(document, query) == 0.5 + 0.75 + 0.0


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((2,), (3, 2), "a single vector and the other 3"),
        ((3, 2), (2,), "the other 3"),
        ((2,), (4,), "2 and of 4 numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused(first: tuple[int, ...], second: tuple[int, ...], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        similarity(np.ones(first, np.float32), np.ones(second, np.float32))
