"""EVE's ways with images and conversations, against its authors' code as tests/families/eve.py has it."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from bundle.errors import UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family

PUBLISHED = {
    "model_type": "eve",
    "mm_vision_tower": "openai/eve-patch14-anypixel-672",
    "mm_vision_tower_clip": "openai/clip-vit-large-patch14-336",
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
}


@hypothesis_settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(width_px=st.integers(1, 5000), height_px=st.integers(1, 5000), number=st.integers(0, 1))
def test_an_image_becomes_as_large_as_the_authors_code_makes_it(
    families: dict[str, ModuleType], width_px: int, height_px: int, number: int
) -> None:
    tower = PUBLISHED["mm_vision_tower"] if number else "openai/eve-patch14-anypixel-1344"
    config = {**PUBLISHED, "mm_vision_tower": tower}
    reference = object.__new__(families["eve"].Processor)
    reference.sizes = families["eve"].Sizes(config)
    family: Any = load_family(config)
    width, height = reference.size_of(width_px, height_px)
    assert family.own_image_spec().layout(width_px, height_px).whole_px == (height, width)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("size", [(70, 37), (33, 90), (20, 20), (500, 3)])
def test_pixels_are_the_references(size: tuple[int, int], number: int, sample_of: Any) -> None:
    sample = sample_of("eve", number)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8))
    ((tile,),) = ImageSpec.read(sample.bundle().path(PREPROCESSOR)).preprocess([image]).groups
    np.testing.assert_allclose(tile, sample.processor.pixels(image), atol=1e-6)


def test_a_conversation_is_vicunas(sample_of: Any, families: dict[str, ModuleType]) -> None:
    sample = sample_of("eve", 0)
    image = Image.new("RGB", (50, 30), (200, 10, 10))
    bundle = sample.bundle()
    turns = [Turn("user", ("What is it?", Placeholder.IMAGE)), Turn("assistant", ("Red.",)), Turn("user", ("Is it?",))]
    layout = ImageSpec.read(bundle.path(PREPROCESSOR)).layout(*image.size)
    builder = PromptBuilder.from_bundle(bundle)
    found = builder.build(turns, [layout]).token_ids.tolist()
    wanted = sample.processor([image], "What is it?")["input_ids"][0].tolist()
    after = sample.processor.tokenizer.encode("x ASSISTANT: Red.</s>USER: Is it? ASSISTANT:").ids
    begin = sample.processor.tokenizer.encode("x ASSISTANT:").ids
    assert after[: len(begin)] == begin
    assert found == [*wanted, *after[len(begin) :]]
    told = builder.build([Turn("system", ("Be brief.",)), Turn("user", ("x",))], [])
    assert told.token_ids.tolist() == sample.processor.tokenizer.encode("Be brief. USER: x ASSISTANT:").ids


@pytest.mark.parametrize("token", ["<image>", "</s>", "<s>"])
def test_callers_write_none_of_the_models_tokens(token: str, sample_of: Any) -> None:
    builder = PromptBuilder.from_bundle(sample_of("eve", 0).bundle())
    plain, forged = (builder.build([Turn("user", (text,))], []).token_ids for text in ("a b", f"a{token}b"))
    token_id = builder.tokenizer.token_id(token)
    assert (plain == token_id).sum() == (forged == token_id).sum()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "eve-patch14-anypixel-672"),
        ({"mm_vision_tower_clip": None}, "mm_vision_tower_clip 'None'"),
        ({"mm_vision_tower": "eve-patch14-anypixel-700"}, "whole multiple of 336"),
        ({"mm_vision_tower": "eve-patch16-anypixel-672"}, "patches of 16"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"mm_use_im_patch_token": True}, "mm_use_im_patch_token"),
        ({"mm_hidden_size": 1020}, "mm_hidden_size 1020"),
        ({"mm_projector_type": "identity"}, "mm_projector_type 'identity'"),
    ],
)
def test_a_config_that_is_not_built_is_refused_by_its_key(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        load_family({**copy.deepcopy(PUBLISHED), **settings}).graphs(_contrib())


def _contrib() -> Any:
    from export.nn.contrib import Contrib

    return Contrib()


def test_published_images_are_lines_that_end_and_one_row_of_all() -> None:
    """24 lines of 24 squares; 48 of 48 in the larger ones."""
    for tower, rows in ((PUBLISHED["mm_vision_tower"], 601), ("openai/eve-patch14-anypixel-1344", 2353)):
        family: Any = load_family({**PUBLISHED, "mm_vision_tower": tower})
        assert family._rows == rows
