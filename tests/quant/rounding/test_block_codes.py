from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quant.rounding.block_codes import BlockCodes, pack

BITS = st.sampled_from([2, 4, 8])


def unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The codes of `bits` bits, one per byte, the lowest bits first."""
    ones = np.unpackbits(packed[..., None], axis=-1, bitorder="little").reshape(*packed.shape[:-1], -1, bits)
    return np.packbits(ones, axis=-1, bitorder="little")[..., 0]


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
    np.testing.assert_array_equal(unpacked(packed, bits), codes)


@settings(max_examples=80, deadline=None)
@given(
    bits=BITS,
    block_size=st.sampled_from([16, 32, 64, 128, 256]),
    num_inputs=st.integers(1, 300),
    num_outputs=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_a_packed_matrix_stands_for_the_weights_it_was_packed_from(
    bits: int, block_size: int, num_inputs: int, num_outputs: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    blocks = -(-num_inputs // block_size)
    codes = rng.integers(0, 1 << bits, (num_outputs, blocks * block_size), dtype=np.uint8)
    zeros = rng.integers(0, 1 << bits, (num_outputs, blocks), dtype=np.uint8)
    scales, offsets = rng.standard_normal((2, num_outputs, blocks)).astype(np.float32)
    packed = pack(codes, bits).reshape(num_outputs, blocks, -1)
    assert packed.shape[2] == block_size * bits // 8
    found = BlockCodes(unpacked(packed, bits).reshape(codes.shape), scales, bits, zeros, offsets).weights(num_inputs)
    for column in range(num_inputs):
        at = column // block_size
        steps = codes[:, column].astype(np.float32) - zeros[:, at]
        np.testing.assert_allclose(found[:, column], steps * scales[:, at] + offsets[:, at], rtol=1e-6)


def test_planes_add_up() -> None:
    rng = np.random.default_rng(1)
    parts = [
        BlockCodes(rng.integers(0, 4, (3, 32), dtype=np.uint8), rng.random((3, 2), np.float32), 2) for _ in range(3)
    ]
    whole = replace(parts[0], rest=replace(parts[1], rest=parts[2]))
    np.testing.assert_allclose(whole.weights(29), sum(part.weights(29) for part in parts), rtol=1e-6)
    assert [plane.codes.tolist() for plane in whole.planes] == [part.codes.tolist() for part in parts]
    assert all(plane.rest is None for plane in whole.planes)
