"""A canvas of two squares: pixel for pixel those that transformers' Pillow processor makes for two towers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from bundle.errors import UnsupportedConfigError
from bundle.image import Beside, TileLayout
from export.image_processor import read_image_spec

KIND = {"image_processor_type": "DeepseekVLHybridImageProcessor"}
LARGE_PX, SMALL_PX = 40, 24
# the graph makes up for another mean of the small square; here both have one, so that pixels can be compared
TOLD = {
    "size": {"height": SMALL_PX, "width": SMALL_PX},
    "high_res_size": {"height": LARGE_PX, "width": LARGE_PX},
    "min_size": 4,
    "image_mean": [0.3, 0.5, 0.6],
    "high_res_image_mean": [0.3, 0.5, 0.6],
}


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 120), height=st.integers(1, 120))
@example(width=40, height=40)
@example(width=120, height=2)
def test_both_squares_equal_the_reference_s(width: int, height: int) -> None:
    from transformers import DeepseekVLHybridImageProcessorPil

    rng = np.random.default_rng(width * 1000 + height)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    spec = read_image_spec({**KIND, **TOLD}, "test")
    expected = DeepseekVLHybridImageProcessorPil(**TOLD)(images=[image], return_tensors="np")
    found = spec.preprocess([image])
    assert found.layouts == (TileLayout(),)
    canvas = found.pixel_values
    assert canvas.shape == (1, 3, LARGE_PX, LARGE_PX + SMALL_PX)
    np.testing.assert_array_equal(canvas[..., :LARGE_PX], expected["high_res_pixel_values"])
    np.testing.assert_array_equal(canvas[..., :SMALL_PX, LARGE_PX:], expected["pixel_values"])


def test_two_ways_of_scaling_are_refused() -> None:
    with pytest.raises(UnsupportedConfigError, match="high_res_resample 2 differs from resample 3"):
        read_image_spec({**KIND, "high_res_resample": 2}, "test")


def test_a_small_square_that_is_larger_is_refused() -> None:
    with pytest.raises(ValidationError, match="9 px beside one of 8"):
        Beside(side_px=8, small_px=9, colour=(0, 0, 0))
