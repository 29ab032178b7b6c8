"""Prompt layouts: tokens per image, where they stand, and manifests of before."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from bundle.errors import ImageError
from bundle.image import Area, TileLayout
from bundle.layouts.llava import LlavaPrompt
from bundle.layouts.prompt import Span
from bundle.layouts.qwen2_vl import Qwen2VLPrompt
from bundle.layouts.table import KnownImagePrompt

QWEN = Qwen2VLPrompt(image_token="<i>", image_token_id=1, tokens_per_tile=4, step_px=28)


def test_manifests_of_before_load_as_they_are() -> None:
    """They gave every layout the tokens of idefics3, empty."""
    old = {
        "kind": "llava",
        "image_token": "<image>",
        "image_token_id": 7,
        "tokens_per_tile": 9,
        "frames": "plain",
        "fake_token": "",
        "global_token": "",
    }
    found = TypeAdapter(KnownImagePrompt).validate_python(old)
    assert isinstance(found, LlavaPrompt)
    assert found.model_dump() == old


def test_an_unknown_layout_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match=r"expected tags: .*'idefics3', 'internvl', .*'llava'"):
        TypeAdapter(KnownImagePrompt).validate_python({"kind": "mystery"})


def test_text_stands_at_one_number_on_every_axis() -> None:
    places = QWEN.places(5, (), ())
    assert places.positions.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert places.next_position == 5


def test_an_image_stands_at_one_time_in_rows_and_columns_and_text_behind_its_longer_side() -> None:
    layout = TileLayout(whole_px=(56, 84))
    assert QWEN.num_tokens(layout) == 6
    assert QWEN.text(layout) == "<i>" * 6
    places = QWEN.places(9, (Span(2, 8, 0, 0),), [layout])
    time, height, width = places.positions.tolist()
    assert time == [0, 1, 2, 2, 2, 2, 2, 2, 5]
    assert height == [0, 1, 2, 2, 2, 3, 3, 3, 5]
    assert width == [0, 1, 2, 3, 4, 2, 3, 4, 5]
    assert places.next_position == 6


def test_a_frame_is_a_square_and_what_is_left_of_a_pooled_one_a_line() -> None:
    frame, pooled = TileLayout(), TileLayout(fewer_tokens=3)
    places = QWEN.places(7, (Span(0, 4, 0, 0), Span(4, 7, 1, 0)), [frame, pooled])
    assert places.positions[1].tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert places.positions[2].tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert places.next_position == 5


@pytest.mark.parametrize("family", ["qwen2_vl", "paddleocr_vl"])
@given(width=st.integers(1, 4000), height=st.integers(1, 4000))
@example(width=5, height=900)
@example(width=3999, height=11)
def test_an_image_that_keeps_its_shape_has_the_size_that_the_processor_gives_it(
    family: str, width: int, height: int
) -> None:
    processing = importlib.import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    geometry = Area(step_px=28, least_px=56 * 56, most_px=28 * 28 * 1280, grows=family == "paddleocr_vl")
    try:
        expected = processing.smart_resize(height, width, 28, 56 * 56, 28 * 28 * 1280)
    except ValueError:
        with pytest.raises(ImageError, match="sides of 1 to 200"):
            geometry.layout(width, height)
        return
    assert geometry.layout(width, height).whole_px == expected


def test_tiles_of_an_image_are_grouped_by_size_and_frames_are_of_one(rng: np.random.Generator) -> None:
    from PIL import Image

    from bundle.image import ImageSpec

    spec = ImageSpec(
        geometry=Area(step_px=4, least_px=16, most_px=400),
        resample="bicubic",
        rescale_factor=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    images = [Image.new("RGB", size) for size in ((20, 8), (20, 8), (8, 20))]
    found = spec.preprocess(images)
    assert [group.shape for group in found.groups] == [(2, 3, 8, 20), (1, 3, 20, 8)]
    with pytest.raises(ValueError, match="2 sizes"):
        _ = found.pixel_values
    frames = spec.for_frames
    assert frames.geometry.has_one_size
    assert frames.tile_size_px == spec.tile_size_px == (20, 20)
