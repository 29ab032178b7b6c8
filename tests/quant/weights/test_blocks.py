from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.weights import blocks
from quant.weights.blocks import dequantize_blocks, pack, quantize_blocks, unpack, zero_code

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


@settings(max_examples=60, deadline=None)
@given(
    bits=BITS,
    block_size=st.sampled_from([16, 32, 64, 128]),
    num_inputs=st.integers(1, 200),
    num_outputs=st.integers(1, 7),
    seed=st.integers(0, 2**16),
)
def test_no_weight_moves_by_more_than_its_blocks_step(
    bits: int, block_size: int, num_inputs: int, num_outputs: int, seed: int
) -> None:
    rows = np.random.default_rng(seed).standard_normal((num_outputs, num_inputs)).astype(np.float32)
    codes, scales = quantize_blocks(rows, bits, block_size)
    assert codes.shape == (num_outputs, -(-num_inputs // block_size) * block_size)
    found = dequantize_blocks(codes, scales, bits, num_inputs)
    step = np.repeat(np.abs(scales), block_size, axis=1)[:, :num_inputs]
    # Half a step by rounding; a whole one at the top of the range, where the grid ends one step short.
    assert np.all(np.abs(found - rows) <= step * 1.0001)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_largest_weight_of_a_block_is_exact(bits: int) -> None:
    rows = np.array([[0.1, -0.9, 0.3, 0.2] * 4, [0.1, 0.9, -0.3, 0.2] * 4], np.float32)
    found = dequantize_blocks(*quantize_blocks(rows, bits, 16), bits, 16)
    np.testing.assert_allclose(found[:, 1], [-0.9, 0.9], rtol=1e-6)


def test_a_matrix_of_many_slabs_equals_its_rows_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(2).standard_normal((11, 40)).astype(np.float32)
    singly = [quantize_blocks(row[None], 4, 32) for row in rows]
    monkeypatch.setattr(blocks, "_SLAB_WEIGHTS", 3 * 40)
    codes, scales = quantize_blocks(rows, 4, 32)
    np.testing.assert_array_equal(codes, np.concatenate([each[0] for each in singly]))
    np.testing.assert_array_equal(scales, np.concatenate([each[1] for each in singly]))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zeros_stay_zeros(bits: int) -> None:
    codes, scales = quantize_blocks(np.zeros((2, 20), np.float32), bits, 16)
    assert set(np.unique(codes)) == {zero_code(bits)}
    assert not dequantize_blocks(codes, scales, bits, 20).any()


def test_gaussian_weights_lose_what_theory_says_at_four_bits() -> None:
    rows = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    found = dequantize_blocks(*quantize_blocks(rows, 4, 128), 4, 1024)
    # 0.0107 is the known relative squared error of 4-bit round-to-nearest on a Gaussian in blocks of 128, here with
    # the scale on /8 rather than /7.5: 10 % either way.
    assert np.square(found - rows).mean() / np.square(rows).mean() == pytest.approx(0.0107, rel=0.1)


def test_codes_equal_onnxruntimes_own_quantizer() -> None:
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    rng = np.random.default_rng(1)
    rows, block_size = rng.standard_normal((24, 96)).astype(np.float32), 32
    packed = np.zeros((24, 3, 16), np.uint8)
    scales = np.zeros((24 * 3,), np.float32)
    zero_points = np.zeros((24, 2), np.uint8)
    weights = np.ascontiguousarray(rows.T)
    quantize_matmul_4bits(packed, weights, scales, zero_points, block_size, 24, 96, True)
    codes, ours = quantize_blocks(rows, 4, block_size)
    np.testing.assert_allclose(ours, scales.reshape(24, 3), rtol=1e-6)
    np.testing.assert_array_equal(pack(codes, 4).reshape(24, 3, 16), packed)
