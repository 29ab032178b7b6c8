"""Sides between two bounds, and quarters: pixel for pixel as transformers' Pillow processor makes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from bundle.errors import ImageError, UnsupportedConfigError
from bundle.image import Bounded, TileLayout
from export.image_processor import read_image_spec

SIZE = {"shortest_edge": 30, "longest_edge": 64}


def _noise(width_px: int, height_px: int) -> Image.Image:
    rng = np.random.default_rng(width_px * 1000 + height_px)
    return Image.fromarray(rng.integers(0, 256, (height_px, width_px, 3), np.uint8))


@pytest.mark.parametrize("splits", [False, True])
@settings(max_examples=25, deadline=None)
@given(width=st.integers(2, 200), height=st.integers(2, 200))
@example(width=64, height=30)
@example(width=200, height=2)
@example(width=65, height=129)
def test_images_and_quarters_equal_the_reference_s(splits: bool, width: int, height: int) -> None:
    from transformers import Idefics2ImageProcessorPil

    told = {"size": SIZE, "do_image_splitting": splits}
    spec = read_image_spec({"image_processor_type": "Idefics2ImageProcessor", **told}, "test")
    image = _noise(width, height)
    found = Idefics2ImageProcessorPil(**told)(images=[[image]], return_tensors="np")
    expected = [
        pixels[:, mask.any(axis=1)][:, :, mask.any(axis=0)]
        for pixels, mask in zip(found["pixel_values"][0], found["pixel_attention_mask"][0], strict=True)
    ]
    tiles = [tile for group in spec.groups(spec.cut(image)) for tile in group]
    assert len(tiles) == len(expected) == spec.layout(width, height).num_tiles
    for ours, theirs in zip(tiles, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert spec.layout(width, height).whole_px == expected[-1].shape[1:]


def test_an_image_too_small_to_be_quartered_is_refused() -> None:
    with pytest.raises(ImageError, match=r"1 x 9 pixels.*quarters"):
        Bounded(shortest_px=8, longest_px=16, splits=True).layout(1, 9)
    assert Bounded(shortest_px=8, longest_px=16).layout(1, 9) == TileLayout(whole_px=(9, 8))


def test_a_frame_is_a_square_within_the_bounds_and_never_quartered() -> None:
    frames = Bounded(shortest_px=500, longest_px=900, splits=True).for_frames
    assert frames.tile_size_px == (500, 500)
    assert frames.layout(50, 20) == TileLayout()


def test_an_area_bounds_the_sides() -> None:
    smaller = Bounded(shortest_px=378, longest_px=980, splits=True).within(40_000)
    assert (smaller.shortest_px, smaller.longest_px, smaller.splits) == (200, 200, True)


@pytest.mark.parametrize("size", [{"height": 30, "width": 30}, 30])
def test_sizes_of_another_kind_are_refused(size: object) -> None:
    with pytest.raises(UnsupportedConfigError, match="size = "):
        read_image_spec({"image_processor_type": "Idefics2ImageProcessor", "size": size}, "test")


def test_bounds_that_cross_are_refused() -> None:
    with pytest.raises(ValidationError, match="sides from 9 to 8"):
        Bounded(shortest_px=9, longest_px=8)
