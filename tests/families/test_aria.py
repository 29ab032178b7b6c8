"""What Aria's own tests in test_parity do not reach: images of the shorter length, and their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pydantic import ValidationError

from bundle.directory import open_bundle
from bundle.errors import UnsupportedConfigError
from bundle.image import TileLayout, WholePatches
from bundle.prompt import Placeholder, Turn
from export.exporter import export_checkpoint
from export.image_processor import read_image_spec
from export.models.aria import Aria
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings

SHORTER_PX = 490
PATCH_PX = 35
VISION = {"image_size": 980, "patch_size": PATCH_PX}


def test_images_of_the_shorter_length_have_fewer_queries(
    sample_of: Any, conversations: dict[str, Any], tmp_path: Path
) -> None:
    sample, parts = sample_of("aria", 0), conversations["two images"]
    export_checkpoint(sample.checkpoint, tmp_path / "bundle", name="tiny", most_image_px=SHORTER_PX**2)
    runner = VisionLanguageRunner(open_bundle(tmp_path / "bundle"), RuntimeSettings(intra_threads=1))
    turn = Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))
    prompt = runner.prompt([turn], [part for part in parts if not isinstance(part, str)])
    inputs = sample.inputs(parts, max_image_size=SHORTER_PX)
    assert prompt.prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
    answer = [5, 60, 7]
    found = runner.forced_logits(runner.prefill(prompt, 4), answer)
    assert_allclose(found, sample.logits(inputs, answer[:-1]), atol=1e-3)


def test_fewer_pixels_than_the_shorter_length_are_refused(sample_of: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedConfigError, match="smallest images of the model are 490 x 490 pixels"):
        export_checkpoint(sample_of("aria", 0).checkpoint, tmp_path / "bundle", most_image_px=SHORTER_PX**2 - 1)
    with pytest.raises(UnsupportedConfigError, match=r"size_conversion .*None queries look at an image of 490 pixels"):
        export_checkpoint(sample_of("aria", 1).checkpoint, tmp_path / "bundle", most_image_px=SHORTER_PX**2)


def test_images_without_queries_are_refused() -> None:
    """The config alone: its projector has queries for the shorter length, and the processor asks for the longer."""
    told = {"image_processor_type": "AriaImageProcessor", "patch_size": PATCH_PX}
    family = Aria({"projector_patch_to_query_dict": {"196": 3}, "text_config": {}, "vision_config": VISION})
    with pytest.raises(UnsupportedConfigError, match="queries for longer sides of 490 pixels, the tower positions for"):
        family.check_images(read_image_spec(told, "test"))


@settings(max_examples=12, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700))
@example(width=490, height=336)
@example(width=337, height=700)
@example(width=1, height=700)
def test_an_image_is_what_the_reference_s_mask_leaves_up_to_whole_patches(width: int, height: int) -> None:
    from transformers import AriaImageProcessorPil

    told = {"max_image_size": SHORTER_PX, "min_image_size": 336}
    spec = read_image_spec({"image_processor_type": "AriaImageProcessor", "patch_size": PATCH_PX, **told}, "test")
    rng = np.random.default_rng(width * 1000 + height)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    found = AriaImageProcessorPil(**told)(images=[image], return_tensors="np")
    rows, cols = (int(found["pixel_mask"][0].any(axis=axis).sum()) for axis in (1, 0))
    whole = -(-rows // PATCH_PX) * PATCH_PX, -(-cols // PATCH_PX) * PATCH_PX
    assert spec.layout(width, height) == TileLayout(whole_px=whole)
    (tile,) = (tile for group in spec.groups(spec.cut(image)) for tile in group)
    assert_array_equal(tile, found["pixel_values"][0][:, : whole[0], : whole[1]])


def test_settings_that_the_processor_lacks_are_refused() -> None:
    for told in ({"max_image_size": 500}, {"split_image": True}):
        with pytest.raises(UnsupportedConfigError, match="490 and 980, and images that are not split"):
            read_image_spec({"image_processor_type": "AriaImageProcessor", **told}, "test")
    for lengths in ({"longest_px": 64, "patch_px": 24}, {"longest_px": 64, "patch_px": 8, "shorter_px": (72,)}):
        with pytest.raises(ValidationError, match="longer sides of"):
            WholePatches(shortest_px=8, **lengths)
    with pytest.raises(ValidationError, match="shorter sides from 72 px"):
        WholePatches(longest_px=64, shortest_px=72, patch_px=8)
