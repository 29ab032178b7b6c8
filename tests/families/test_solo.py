"""SOLO's ways with images and conversations, against its authors' code as tests/families/solo.py has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from bundle.errors import ImageError, PromptError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec, LongestEdge
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family
from export.exporter import export_checkpoint


@pytest.fixture(scope="module")
def published() -> Any:
    return load_family({"model_type": "mistral", "architectures": ["SoloForCausalLM"], "vocab_size": 33_031})


@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
@given(width_px=st.integers(1, 5000), height_px=st.integers(1, 5000))
def test_an_image_becomes_as_large_as_the_authors_code_makes_it(
    published: Any, families: dict[str, ModuleType], width_px: int, height_px: int
) -> None:
    reference = object.__new__(families["solo"].Processor)
    reference.patch_px = 32
    spec, (width, height) = published.own_image_spec(), reference.size_of(width_px, height_px)
    if not min(width, height):
        with pytest.raises(ImageError, match="less than a pixel"):
            spec.layout(width_px, height_px)
        return
    assert spec.layout(width_px, height_px).whole_px == (height, width)
    assert max(width, height) <= 1024


@pytest.mark.parametrize("size", [(70, 37), (33, 90), (300, 260), (1500, 900), (7, 7)])
def test_pixels_are_the_references_patch_by_patch(size: tuple[int, int], sample_of: Any) -> None:
    sample = sample_of("solo", 0)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8))
    ((tile,),) = ImageSpec.read(sample.bundle().path(PREPROCESSOR)).preprocess([image]).groups
    wanted = sample.processor.patches(image)
    rows, cols = wanted.shape[:2]
    patches = tile.reshape(3, rows, 20, cols, 20).transpose(1, 3, 0, 2, 4).reshape(rows, cols, -1)
    np.testing.assert_allclose(patches, wanted, atol=1e-6)


def test_a_bound_of_pixels_is_whole_patches(published: Any) -> None:
    bounded = published.own_image_spec().geometry.within(300_000)
    assert isinstance(bounded, LongestEdge)
    assert (bounded.longest_px, bounded.scaling) == (544, "in steps")


def test_a_conversation_is_tokenized_turn_by_turn(sample_of: Any) -> None:
    """As the authors tune: the image, the first message behind BOS, each answer by itself, its end, the next one."""
    sample = sample_of("solo", 0)
    image = Image.new("RGB", (50, 30), (200, 10, 10))
    bundle = sample.bundle()
    turns = [
        Turn("user", (" What is it? ", Placeholder.IMAGE)),
        Turn("assistant", ("It is red.",)),
        Turn("user", ("Is it?",)),
    ]
    layout = ImageSpec.read(bundle.path(PREPROCESSOR)).layout(*image.size)
    found = PromptBuilder.from_bundle(bundle).build(turns, [layout]).token_ids.tolist()
    encode = sample.processor.tokenizer.encode
    wanted = sample.processor([image], " What is it? ")["input_ids"][0].tolist()
    for text in ("It is red.</s>", "[INST] Is it? [/INST]"):
        wanted += encode(text, add_special_tokens=False).ids
    assert found == wanted


@pytest.mark.parametrize("token", ["<vision>", "<vpatch>", "<vrow_sep>", "</s>"])
def test_callers_write_none_of_the_models_tokens(token: str, sample_of: Any) -> None:
    builder = PromptBuilder.from_bundle(sample_of("solo", 0).bundle())
    ids = builder.build([Turn("user", (f"a{token}b",))], []).token_ids
    assert builder.tokenizer.token_id(token) not in ids


def test_a_system_message_is_refused_by_name(sample_of: Any) -> None:
    builder = PromptBuilder.from_bundle(sample_of("solo", 0).bundle())
    with pytest.raises(PromptError, match="user and assistant alone"):
        builder.build([Turn("system", ("x",)), Turn("user", ("x",))], [])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"vocab_size": 300}, "no row of <vpatch>"),
        ({"text_config": {}}, "text_config is {}"),
        ({"vision_patch_size": 10}, "config asks for"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    settings: dict[str, Any], named: str, sample_of: Any, tmp_path: Path
) -> None:
    shutil.copytree(sample_of("solo", 0).checkpoint, tmp_path / "changed")
    path = tmp_path / "changed" / "config.json"
    config = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(Exception, match=named) as caught:
        export_checkpoint(tmp_path / "changed", tmp_path / "bundle")
    assert isinstance(caught.value, UnsupportedConfigError) or "weights do not belong" in str(caught.value)


def test_the_published_sizes_are_mistrals(published: Any) -> None:
    config = published.decoder.config
    assert (config.hidden_size, config.num_layers, config.num_kv_heads) == (4096, 32, 8)
    assert published.decoder.window_of(0) == 4096
