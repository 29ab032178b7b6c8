"""Grids of tiles into which an image is scaled and padded: pixel for pixel as transformers' Pillow processor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from bundle.image import CanvasGrid, Pinpoints, TileLayout
from export.image_processor import read_image_spec

TILE_PX = 28
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (5, 1))
SETTINGS = {
    "image_grid_pinpoints": [[rows * TILE_PX, cols * TILE_PX] for rows, cols in GRIDS],
    "size": {"shortest_edge": TILE_PX},
    "crop_size": {"height": TILE_PX, "width": TILE_PX},
}


def _noise(width_px: int, height_px: int) -> Image.Image:
    rng = np.random.default_rng(width_px * 1000 + height_px)
    return Image.fromarray(rng.integers(0, 256, (height_px, width_px, 3), np.uint8))


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 200))
@example(width=28, height=28)
@example(width=57, height=27)  # padded above by less than below
@example(width=1, height=120)
@example(width=900, height=1)
def test_tiles_equal_the_reference_s_but_for_their_order(width: int, height: int) -> None:
    from transformers import LlavaNextImageProcessorPil

    spec = read_image_spec({"image_processor_type": "LlavaNextImageProcessor", **SETTINGS}, "test")
    image = _noise(width, height)
    layout = spec.layout(width, height)
    (whole, *tiles) = LlavaNextImageProcessorPil(**SETTINGS)(images=[image], return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(spec.preprocess([image]).pixel_values, [*tiles, whole])
    assert len(tiles) == layout.rows * layout.cols
    assert layout.image_px == (height, width)


def test_a_frame_is_one_tile() -> None:
    frames = Pinpoints(tile_px=8, grids=((2, 2),)).for_frames
    assert frames.tile_size_px == (8, 8)
    assert frames.layout(50, 20) == TileLayout()


def test_a_grid_that_would_take_gigabytes_before_it_is_cut_is_refused() -> None:
    with pytest.raises(ValidationError, match="64 tiles of 4096 px"):
        Pinpoints(tile_px=4096, grids=((1, 1), (8, 8)))
    with pytest.raises(ValidationError, match="256 tiles of 1024 px"):
        CanvasGrid(tile_px=1024, most_tiles=256)


@pytest.mark.parametrize("grids", [(), ((0, 1),), ((1, 65),)])
def test_grids_of_no_or_too_many_tiles_are_refused(grids: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValidationError):
        Pinpoints(tile_px=8, grids=grids)
