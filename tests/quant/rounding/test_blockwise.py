from __future__ import annotations

import numpy as np
import pytest

from bundle.errors import QuantizationError
from quant.rounding.block_codes import BlockCodes
from quant.rounding.table import ROUNDINGS, load_rounding

BLOCKWISE = [name for name in ROUNDINGS if not load_rounding(name).needs_gram]
EVERY_FORM = [(name, bits) for name in BLOCKWISE for bits in load_rounding(name).widths]


def same(found: BlockCodes | None, expected: BlockCodes | None) -> bool:
    if found is None or expected is None:
        return found is expected
    pairs = [
        (getattr(found, field), getattr(expected, field)) for field in ("codes", "scales", "zero_points", "offsets")
    ]
    return all(np.array_equal(*pair) for pair in pairs) and same(found.rest, expected.rest)


@pytest.mark.parametrize(("name", "bits"), EVERY_FORM)
def test_a_matrix_of_many_slabs_equals_its_rows_one_by_one(name: str, bits: int) -> None:
    # Rows of 80,040 weights: three of them fill a slab of 2^18, so that these lie in three.
    rows = np.random.default_rng(2).standard_normal((8, 80_040)).astype(np.float32)
    rounding = load_rounding(name)
    found = rounding(rows, bits, 128)
    for at, row in enumerate(rows):
        assert same(rounding(row[None], bits, 128), found.map(lambda array, at=at: array[at : at + 1]))


@pytest.mark.parametrize(("name", "bits"), EVERY_FORM)
def test_a_last_block_is_fitted_to_the_weights_it_holds(name: str, bits: int) -> None:
    rows = 3 + np.random.default_rng(3).standard_normal((4, 8)).astype(np.float32)
    alone = load_rounding(name)(rows, bits, 8).weights(8)
    padded = load_rounding(name)(rows, bits, 32)
    assert padded.codes.shape == (4, 32)
    np.testing.assert_array_equal(padded.weights(8), alone)


@pytest.mark.parametrize(("name", "bits"), EVERY_FORM)
def test_a_block_of_zeros_stays_zeros(name: str, bits: int) -> None:
    assert not load_rounding(name)(np.zeros((2, 40), np.float32), bits, 32).weights(40).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "bits"), EVERY_FORM)
def test_weights_that_are_not_finite_are_refused(name: str, bits: int, bad: float) -> None:
    rows = np.ones((3, 64), np.float32)
    rows[1, 40] = bad
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        load_rounding(name)(rows, bits, 32)
