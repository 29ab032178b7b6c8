"""llama.cpp's blocks as codes: the gguf package's own numbers, bit for bit, from any bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.testing import assert_array_equal

from export.gguf_blocks import block_codes

HALVES = {
    Kind.Q4_0: [0],
    Kind.Q4_1: [0, 2],
    Kind.Q5_0: [0],
    Kind.Q5_1: [0, 2],
    Kind.Q8_0: [0],
    Kind.Q4_K: [0, 2],
    Kind.Q5_K: [0, 2],
    Kind.Q6_K: [208],
}
"""Where each type's blocks keep a float16; every other byte may be anything."""
WIDTH = 512


def random_rows(kind: Kind, rng: np.random.Generator, exponents: tuple[int, int]) -> np.ndarray:
    """Rows of random bytes, the float16 among them normal numbers of either sign."""
    block_size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (6 * WIDTH // block_size, num_bytes)).astype(np.uint8)
    for start in HALVES[kind]:
        values = rng.choice([-1.0, 1.0], len(blocks)) * (1 + rng.random(len(blocks)))
        halves = (values * 2.0 ** rng.integers(*exponents, len(blocks))).astype(np.float16)
        blocks[:, start : start + 2] = halves[:, None].view(np.uint8)
    return blocks.reshape(6, -1)


@pytest.mark.parametrize("kind", HALVES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("exponents", [(-8, -6), (-14, 15)], ids=["alike", "far apart"])
def test_codes_stand_for_the_numbers_of_the_gguf_package(
    kind: Kind, exponents: tuple[int, int], rng: np.random.Generator
) -> None:
    rows = random_rows(kind, rng, exponents)
    found = block_codes(rows, kind)
    assert found is not None
    assert found.block_size == (16 if kind == Kind.Q6_K else 32)
    assert_array_equal(found.weights(WIDTH), gguf.quants.dequantize(rows, kind))


@pytest.mark.parametrize(("kind", "bits"), [(Kind.Q4_1, 4), (Kind.Q5_1, 8), (Kind.Q4_K, 4), (Kind.Q5_K, 8)])
def test_codes_are_counted_from_their_middle_where_that_is_exact(
    kind: Kind, bits: int, rng: np.random.Generator
) -> None:
    alike, apart = (block_codes(random_rows(kind, rng, each), kind) for each in ((-8, -6), (-14, 15)))
    assert alike is not None
    assert apart is not None
    assert (alike.bits, alike.zero_points is None) == (bits, True)
    assert apart.zero_points is not None


@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q2_K, Kind.Q3_K, Kind.IQ4_NL, Kind.TQ2_0], ids=lambda kind: kind.name)
def test_other_types_are_not_held(kind: Kind) -> None:
    assert block_codes(np.zeros((2, 512), np.uint8), kind) is None


def test_rows_that_are_mapped_read_only_stay_as_they_are(rng: np.random.Generator) -> None:
    rows = random_rows(Kind.Q4_1, rng, (-8, -6))
    rows.setflags(write=False)
    before = rows.copy()
    assert block_codes(rows, Kind.Q4_1) is not None
    assert_array_equal(rows, before)
