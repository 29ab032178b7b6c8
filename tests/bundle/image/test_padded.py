"""Images padded to a square: pixel for pixel as transformers' Pillow processors make them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, Padded, TileLayout
from export.image_processor import read_image_spec

SIDE_PX = 28


def _noise(width_px: int, height_px: int) -> Image.Image:
    rng = np.random.default_rng(width_px * 1000 + height_px)
    return Image.fromarray(rng.integers(0, 256, (height_px, width_px, 3), np.uint8))


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 120), height=st.integers(1, 120))
@example(width=28, height=28)
@example(width=57, height=28)
@example(width=1, height=90)
def test_one_of_several_images_equals_the_reference_s(width: int, height: int) -> None:
    from transformers import LlavaOnevisionImageProcessorPil

    pinpoints = [[SIDE_PX, SIDE_PX], [SIDE_PX, 2 * SIDE_PX]]
    told = {"size": {"height": SIDE_PX, "width": SIDE_PX}, "image_grid_pinpoints": pinpoints}
    spec = read_image_spec({"image_processor_type": "LlavaOnevisionImageProcessor", **told}, "test")
    image, other = _noise(width, height), _noise(20, 30)
    expected = LlavaOnevisionImageProcessorPil(**told)(images=[[image, other]], return_tensors="np")["pixel_values"]
    found = spec.among(2).preprocess([image, other])
    np.testing.assert_array_equal(found.pixel_values, expected[:, 0])
    assert found.layouts == (TileLayout(image_px=(height, width)), TileLayout(image_px=(30, 20)))


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 120), height=st.integers(1, 120))
@example(width=28, height=28)
@example(width=2, height=100)  # its short side would be less than the least
def test_an_image_scaled_before_it_is_padded_equals_the_reference_s(width: int, height: int) -> None:
    from transformers import DeepseekVLImageProcessorPil

    told = {"size": {"height": SIDE_PX, "width": SIDE_PX}, "min_size": 5, "image_mean": [0.1, 0.6, 0.9]}
    spec = read_image_spec({"image_processor_type": "DeepseekVLImageProcessor", **told}, "test")
    image = _noise(width, height)
    expected = DeepseekVLImageProcessorPil(**told)(images=[image], return_tensors="np")["pixel_values"]
    found = spec.preprocess([image])
    np.testing.assert_array_equal(found.pixel_values, expected)
    assert found.layouts == (TileLayout(),)


@pytest.mark.parametrize(
    "told", [{"do_pad": False}, {"size": {"height": 8, "width": 9}}, {"size": {"shortest_edge": 8}}]
)
def test_images_that_are_no_squares_are_refused(told: dict[str, object]) -> None:
    with pytest.raises(UnsupportedConfigError, match="size"):
        read_image_spec({"image_processor_type": "DeepseekVLImageProcessor", **told}, "test")


def test_an_image_alone_is_cut_as_before() -> None:
    spec = read_image_spec({"image_processor_type": "LlavaOnevisionImageProcessor"}, "test")
    assert spec.among(0) is spec.among(1) is spec
    assert spec.layout(384, 700).rows == 2
    next_spec = read_image_spec(
        {"image_processor_type": "LlavaNextImageProcessor", "size": 336, "crop_size": 336}, "test"
    )
    assert next_spec.among(3) is next_spec


def test_a_strip_is_scaled_before_it_is_padded_as_its_square_would_take_gigabytes() -> None:
    geometry = Padded(side_px=32, colour=(200, 0, 0), scales_first=False)
    (tile,) = geometry.tiles(Image.new("RGB", (60_000, 2_000), (0, 0, 200)), Image.Resampling.BICUBIC)
    pixels = np.asarray(tile)
    assert (pixels[0] == (200, 0, 0)).all()
    assert (pixels[15] == (0, 0, 200)).all()


@pytest.mark.parametrize("mean", [[0.5, 0.5], [0.5, 0.5, 1.5], 0.5])
def test_a_mean_that_is_no_colour_is_refused(mean: object) -> None:
    with pytest.raises(UnsupportedConfigError, match="image_mean"):
        read_image_spec({"image_processor_type": "LlavaOnevisionImageProcessor", "image_mean": mean}, "test")


def test_the_specification_survives_its_file_and_refuses_a_colour_that_is_none() -> None:
    spec = read_image_spec({"image_processor_type": "LlavaOnevisionImageProcessor"}, "test")
    assert ImageSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError):
        Padded(side_px=8, colour=(0, 0, 256), scales_first=True)


@pytest.mark.parametrize("scales_first", [True, False])
@pytest.mark.parametrize("size", [(60, 20), (15, 45), (28, 28), (31, 90)])
def test_boxes_lie_in_the_square_where_the_image_does(scales_first: bool, size: tuple[int, int]) -> None:
    geometry = Padded(side_px=96, colour=(0, 0, 0), scales_first=scales_first)
    box, image = (0.25, 0.5, 0.75, 1.0), Image.new("RGB", size, (255, 255, 255))
    left, top, right, bottom = (round(share * 96) for share in geometry.placed(box, *size))
    (square,) = geometry.tiles(image, Image.Resampling.NEAREST)
    lit = np.asarray(square)[..., 0] > 0
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    width, height = len(columns), len(rows)
    wanted = columns[0] + width / 4, rows[0] + height / 2, columns[0] + width * 3 / 4, rows[0] + height
    np.testing.assert_allclose((left, top, right, bottom), wanted, atol=1.6)
