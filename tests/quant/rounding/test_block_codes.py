from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.rounding.block_codes import pack, unpack

BITS = st.sampled_from([2, 4, 8])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_first_code_lies_in_the_lowest_bits(bits: int) -> None:
    codes = np.zeros(8 // bits, np.uint8)
    codes[0] = 1
    assert pack(codes, bits).tolist() == [1]


def test_two_nibbles_pack_low_first() -> None:
    assert pack(np.array([0x3, 0xA], np.uint8), 4).tolist() == [0xA3]


@settings(max_examples=60, deadline=None)
@given(bits=BITS, rows=st.integers(1, 7), groups=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_unpacking_gives_back_what_was_packed(bits: int, rows: int, groups: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, groups * 8), dtype=np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, groups * bits)
    np.testing.assert_array_equal(unpack(packed, bits), codes)
