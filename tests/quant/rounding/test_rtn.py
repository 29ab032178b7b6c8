from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.rounding.block_codes import pack, zero_code
from quant.rounding.rtn import round_to_nearest, round_to_positive

BITS = st.sampled_from([2, 4, 8])


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
    found = round_to_nearest(rows, bits, block_size)
    assert found.codes.shape == (num_outputs, -(-num_inputs // block_size) * block_size)
    step = np.repeat(np.abs(found.scales), block_size, axis=1)[:, :num_inputs]
    # Half a step by rounding; a whole one at the top of the range, where the grid ends one step short.
    assert np.all(np.abs(found.weights(num_inputs) - rows) <= step * 1.0001)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_largest_weight_of_a_block_is_exact(bits: int) -> None:
    rows = np.array([[0.1, -0.9, 0.3, 0.2] * 4, [0.1, 0.9, -0.3, 0.2] * 4], np.float32)
    found = round_to_nearest(rows, bits, 16).weights(16)
    np.testing.assert_allclose(found[:, 1], [-0.9, 0.9], rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zeros_stay_zeros(bits: int) -> None:
    found = round_to_nearest(np.zeros((2, 20), np.float32), bits, 16)
    assert set(np.unique(found.codes)) == {zero_code(bits)}
    assert not found.weights(20).any()


def test_gaussian_weights_lose_what_theory_says_at_four_bits() -> None:
    rows = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    found = round_to_nearest(rows, 4, 128).weights(1024)
    # 0.0107 is the known relative squared error of 4-bit round-to-nearest on a Gaussian in blocks of 128, here with
    # the scale on /8 rather than /7.5: 10 % either way.
    assert np.square(found - rows).mean() / np.square(rows).mean() == pytest.approx(0.0107, rel=0.1)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_equal_onnxruntimes_own_quantizer(bits: int) -> None:
    from onnxruntime.quantization import matmul_nbits_quantizer as theirs

    rows, block_size = np.random.default_rng(1).standard_normal((24, 96)).astype(np.float32), 32
    config = theirs.DefaultWeightOnlyQuantConfig(block_size, is_symmetric=True, bits=bits)
    weights = np.ascontiguousarray(rows.T)
    packed, scales, _ = theirs.DefaultWeightOnlyQuantizer(config).qbits_block_quant(weights)
    ours = round_to_nearest(rows, bits, block_size)
    np.testing.assert_allclose(ours.scales, scales, rtol=1e-6)
    np.testing.assert_array_equal(pack(ours.codes, bits).reshape(packed.shape), packed)


@pytest.mark.parametrize("bits", [4, 8])
def test_positive_scales_give_the_same_codes_where_the_grid_is_the_same(bits: int) -> None:
    rows = np.random.default_rng(3).standard_normal((64, 96)).astype(np.float32)
    either, positive = round_to_nearest(rows, bits, 32), round_to_positive(rows, bits, 32)
    assert np.all(positive.scales > 0)
    is_same = np.repeat(either.scales > 0, 32, axis=1)
    assert 0.3 < is_same.mean() < 0.7
    np.testing.assert_array_equal(positive.codes[is_same], either.codes[is_same])


def test_a_positive_peak_is_kept_or_cut_whichever_moves_the_block_less() -> None:
    keeps = np.array([[7.0, -3.0, 2.0, 1.0] * 8], np.float32)  # on the grid of step 1
    cuts = np.array([[8.0] + [-5.0, 3.0, 4.0] * 10 + [1.0]], np.float32)  # on it but for the peak
    found = round_to_positive(np.concatenate([keeps, cuts]), 4, 32)
    np.testing.assert_allclose(found.weights(32)[0], keeps[0], rtol=1e-6)
    np.testing.assert_allclose(found.weights(32)[1, 1:], cuts[0, 1:], rtol=1e-6)
    assert found.weights(32)[1, 0] == pytest.approx(7)
