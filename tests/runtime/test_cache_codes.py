import numpy as np
import pytest

from bundle.states import State
from runtime.cache_codes import decode, encode
from runtime.cache_shape import CacheShape
from runtime.states import StateBuffers

FLOATS = State(input="k", output="k2", dtype="float32", shape=("B", 2, "S", 4), group=0)
SCALES = np.linspace(0.1, 0.8, 8, dtype=np.float32).reshape(2, 4)


def test_codes_are_the_nearest_halves_to_even_and_kept_within_their_bits() -> None:
    one = np.float32(1)
    rows = np.array([0.5, 1.5, -0.5, -2.5, 127.4, 300, -128, -300], np.float32)
    assert encode(rows, one, "int8").tolist() == [0, 2, 0, -2, 127, 127, -128, -128]
    small = np.array([0.5, 1.5, -0.5, -2.5, 7.4, 30, -8, -30], np.float32)
    halves = [0, 2, 0, -2, 7, 7, -8, -8]
    low_first = [low + 8 | high + 8 << 4 for low, high in zip(halves[0::2], halves[1::2], strict=True)]
    assert encode(small, one, "int4").tolist() == low_first
    assert decode(encode(small, one, "int4"), one, "int4").tolist() == halves


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_codes_that_are_read_and_written_again_stay_what_they_are(scheme) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(-1, 4)
    codes = every if scheme == "int4" else every.view(np.int8)
    scales = np.random.default_rng(0).uniform(1e-3, 3, codes.shape[-1] * (2 if scheme == "int4" else 1))
    np.testing.assert_array_equal(encode(decode(codes, np.float32(scales), scheme), np.float32(scales), scheme), codes)


@pytest.mark.parametrize(("scheme", "num_bytes"), [("float", 32), ("int8", 8), ("int4", 4)])
def test_rows_are_read_as_floats_whatever_they_are_stored_as(scheme, num_bytes) -> None:
    state = FLOATS.coded(scheme)
    assert state.num_bytes == num_bytes
    buffers = StateBuffers((state,), CacheShape(3, 6, num_bytes), "cpu", {"k": SCALES})
    rows = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    buffers.write_rows(state, 1, rows)
    found = buffers.rows_as_float(state, 1, 5)
    half_a_step = {"float": 0.0, "int8": 0.5, "int4": 0.5}[scheme] * SCALES[:, None]
    in_range = np.abs(rows) <= SCALES[:, None] * 7
    assert found.dtype == np.float32
    assert (np.abs(found - rows) <= half_a_step + 1e-7)[in_range].all()
    buffers.write_rows(state, 1, found)
    np.testing.assert_array_equal(buffers.rows_as_float(state, 1, 5), found)
    assert not buffers.rows_as_float(state, 1, 6)[:, 5:].any() or scheme == "int4"  # a byte of zeros is -8, -8
    others = StateBuffers((state,), CacheShape(3, 6, num_bytes), "cpu", {"k": SCALES})
    for slot in (0, 2):
        np.testing.assert_array_equal(buffers.rows_as_float(state, slot, 6), others.rows_as_float(state, slot, 6))


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_rows_are_kept_and_copied_as_codes(scheme) -> None:
    state = FLOATS.coded(scheme)
    buffers = StateBuffers((state,), CacheShape(2, 6, state.num_bytes), "cpu", {"k": SCALES})
    buffers.write_rows(state, 0, np.random.default_rng(2).normal(size=(2, 6, 4)).astype(np.float32))
    before = buffers.rows_as_float(state, 0, 6)
    buffers.copy(0, 1, [6])
    buffers.keep(1, 0, np.array([0, 5, 3]))
    np.testing.assert_array_equal(buffers.rows_as_float(state, 1, 3), before[:, [0, 5, 3]])
    np.testing.assert_array_equal(buffers.rows_as_float(state, 0, 6), before)
