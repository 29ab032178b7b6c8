"""Fuyu's ways with images and prompts, against transformers' own; and what its files or a caller must not say."""

from __future__ import annotations

import asyncio
import json
import shutil
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from bundle.directory import open_bundle
from bundle.errors import ImageError, PromptError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec, PaddedPatches
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family
from export.exporter import export_checkpoint
from export.image_processor import read_image_spec
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

SETTINGS = RuntimeSettings(intra_threads=1)
FUYU = {"image_processor_type": "FuyuImageProcessor"}


def picture(seed: int, width_px: int = 50, height_px: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("size", [(70, 37), (108, 84), (1, 1), (300, 260), (33, 90), (109, 84), (500, 30)])
def test_pixels_are_the_processors_patch_by_patch(size: tuple[int, int], number: int, sample_of: Any) -> None:
    sample, image = sample_of("fuyu", number), picture(3, *size)
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    side = sample.processor.image_processor.patch_size.height
    found = sample.processor(text=["x"], images=[image], return_tensors="pt", return_legacy_image_output=False)
    ((tile,),) = spec.preprocess([image]).groups
    rows, cols = tile.shape[1] // side, tile.shape[2] // side
    patches = tile.reshape(3, rows, side, cols, side).transpose(1, 3, 2, 4, 0).reshape(rows * cols, -1)
    np.testing.assert_array_equal(patches, found["pixel_values"].numpy().reshape(rows * cols, -1))


@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
@given(width_px=st.integers(1, 6000), height_px=st.integers(1, 6000))
def test_no_image_exceeds_the_frame(width_px: int, height_px: int) -> None:
    geometry = read_image_spec(FUYU, "x").geometry
    assert isinstance(geometry, PaddedPatches)
    try:
        whole = geometry.layout(width_px, height_px).whole_px
    except ImageError:
        assert max(width_px, height_px) > 1000 * min(width_px, height_px)
        return
    assert whole is not None
    assert (whole[0] % 30, whole[1] % 30) == (0, 0)
    assert whole[0] <= 1080
    assert whole[1] <= 1920


def test_a_bound_of_pixels_makes_the_frame_smaller_in_shape() -> None:
    frame = read_image_spec(FUYU, "x").geometry
    bounded = frame.within(500_000)
    assert isinstance(bounded, PaddedPatches)
    assert (bounded.height_px, bounded.width_px) == (510, 930)
    assert frame.within(1 << 40) is frame
    with pytest.raises(ValueError, match="no patch of 30 px"):
        frame.within(1000)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_pad": False}, "do_pad = False"),
        ({"padding_mode": "reflect"}, "padding_mode = 'reflect'"),
        ({"padding_value": 300}, "padding_value = 300"),
        ({"size": {"longest_edge": 64}}, "a height and a width"),
        ({"patch_size": {"height": 30, "width": 20}}, "square patches"),
        ({"size": {"height": 1000, "width": 1920}}, "no whole number of patches of 30 px"),
        ({"do_resize": False}, "do_resize is false"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
    ],
)
def test_a_processor_that_is_not_built_is_refused_by_its_setting(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        read_image_spec({**FUYU, **settings}, "preprocessor_config.json")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_channels": 1}, "num_channels is 1"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor is 0.25"),
        ({"hidden_act": "xielu"}, "hidden_act 'xielu'"),
        ({"text_config": {"model_type": "persimmon", "head_dim": 32}}, "head_dim is 32"),
        ({"text_config": {"model_type": "gpt2"}}, "text_config.model_type 'gpt2'"),
    ],
)
def test_a_config_that_is_not_built_is_refused_by_its_key(
    settings: dict[str, Any], named: str, sample_of: Any, tmp_path: Path
) -> None:
    shutil.copytree(sample_of("fuyu", 0).checkpoint, tmp_path / "changed")
    path = tmp_path / "changed" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(UnsupportedConfigError, match=named):
        export_checkpoint(tmp_path / "changed", tmp_path / "bundle")


def test_a_processor_of_other_patches_is_refused() -> None:
    with pytest.raises(UnsupportedConfigError, match="takes patches of 30 pixels"):
        load_family({"model_type": "fuyu"}).check_images(
            read_image_spec({**FUYU, "patch_size": {"height": 15, "width": 15}}, "x")
        )


def test_a_published_config_is_read_with_the_sizes_that_it_leaves_out() -> None:
    family: Any = load_family(
        {"model_type": "fuyu", "rope_theta": 25000.0, "hidden_act": "relu2", "vocab_size": 262_144}
    )
    config = family.decoder.config
    assert (config.hidden_size, config.num_layers, config.head_size, config.max_positions) == (4096, 36, 64, 16_384)
    assert (config.rope.theta, config.rope.part, family.vocab_size) == (25000.0, 0.5, 262_144)


def test_a_tokenizer_that_begins_texts_once_alone_begins_both_halves(sample_of: Any, tmp_path: Path) -> None:
    """Its blank would stand before the first of a prompt's texts, where the processor cuts them and has two firsts."""
    sample, image = sample_of("fuyu", 1), picture(1)
    shutil.copytree(sample.checkpoint, tmp_path / "changed")
    path = str(tmp_path / "changed" / "tokenizer.json")
    backend = Tokenizer.from_file(path)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.save(path)
    export_checkpoint(tmp_path / "changed", tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    layout = ImageSpec.read(bundle.path(PREPROCESSOR)).layout(*image.size)
    found = PromptBuilder.from_bundle(bundle).build([Turn("user", (Placeholder.IMAGE, "What is it?"))], [layout])
    processor = sample.family.processor(tmp_path / "changed")
    assert found.token_ids.tolist() == sample.family.inputs(processor, [image, "What is it?"])["input_ids"][0].tolist()


@pytest.mark.parametrize("text", ["a <box>1, 2, 3, 4</box> b", " two  blanks ", "é\n\tü", "|SPEAK <s >", "4>"])
def test_texts_about_an_image_are_cut_as_the_processor_cuts_them(text: str, sample_of: Any) -> None:
    """Boxes among them, which 5.23's processor scales and then drops: a text that holds one goes as it stands."""
    sample, image = sample_of("fuyu", 0), picture(1)
    bundle = sample.bundle()
    layout = ImageSpec.read(bundle.path(PREPROCESSOR)).layout(*image.size)
    found = PromptBuilder.from_bundle(bundle).build([Turn("user", (Placeholder.IMAGE, text))], [layout])
    wanted = sample.processor(text=[text], images=[image], return_tensors="pt", return_legacy_image_output=False)
    assert found.token_ids.tolist() == wanted["input_ids"][0].tolist()


@pytest.mark.parametrize("token", ["|SPEAKER|", "|NEWLINE|", "<s>", "<0x04>", "|ENDOFTEXT|"])
def test_callers_write_none_of_the_models_tokens(token: str, sample_of: Any) -> None:
    bundle, image = sample_of("fuyu", 0).bundle(), picture(1)
    layout = ImageSpec.read(bundle.path(PREPROCESSOR)).layout(*image.size)
    builder = PromptBuilder.from_bundle(bundle)
    plain, forged = (
        builder.build([Turn("user", (Placeholder.IMAGE, text))], [layout]).token_ids for text in ("a b", f"a{token}b")
    )
    token_id = builder.tokenizer.token_id(token)
    assert (plain == token_id).sum() == (forged == token_id).sum()


def test_conversations_and_second_images_are_refused_by_name(sample_of: Any) -> None:
    bundle = sample_of("fuyu", 0).bundle()
    builder, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))
    asked = Turn("user", ("x",))
    for turns in ([Turn("system", ("x",)), asked], [asked, Turn("assistant", ("x",)), asked]):
        with pytest.raises(PromptError, match="one message of a user"):
            builder.build(turns, [])
    two = [Turn("user", (Placeholder.IMAGE, Placeholder.IMAGE, "x"))]
    with pytest.raises(PromptError, match="hold 2 images"):
        builder.build(two, [spec.layout(40, 40)] * 2)
    with pytest.raises(PromptError, match="say what is asked"):
        builder.build([Turn("user", (Placeholder.IMAGE,))], [spec.layout(40, 40)])
    with pytest.raises(ImageError, match="less than a pixel"):
        spec.layout(4000, 20)


def test_prompts_in_pieces_and_behind_rows_that_are_here_are_answered_as_alone(sample_of: Any) -> None:
    bundle = sample_of("fuyu", 0).bundle()
    shown = picture(1, 100, 80)
    asked: list[tuple[str | Image.Image, ...]] = [
        (shown, "What stands here, and what does not?"),
        (shown, "What stands here, and where?"),
        (picture(2, 100, 80), "What stands here, and what does not?"),
        ("What stands here, and what does not?",),
        (shown, "What stands here, and what does not?"),
    ]
    runner, cached = VisionLanguageRunner(bundle, SETTINGS), []
    for parts, (tokens, num_cached) in zip(asked, asyncio.run(_served(bundle, asked)), strict=True):
        turn = Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))
        images = [part for part in parts if not isinstance(part, str)]
        alone = runner.reply_ids(runner.prefill(runner.prompt([turn], images), 8), 8)
        assert [token for token in tokens if token not in bundle.manifest.eos_token_ids] == alone
        cached.append(num_cached)
    assert cached[0] == cached[2] == cached[3] == 0 < cached[1] <= cached[4]


async def _served(bundle: Any, asked: list[tuple[str | Image.Image, ...]]) -> list[tuple[list[int], int]]:
    """Return what each said, one after another, and how much of its prompt was there."""
    settings = EngineSettings(max_sequences=2, intra_threads=1, prefill_chunk_tokens=32)
    pool = PreprocessPool(settings)
    model = GenerativeModel(bundle, settings, pool)
    model.start()
    try:
        return [await _answer(model, parts) for parts in asked]
    finally:
        model.close()
        pool.close()


async def _answer(model: GenerativeModel, parts: tuple[str | Image.Image, ...]) -> tuple[list[int], int]:
    content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(_png(part)) for part in parts)
    sampling = SamplingParams(max_tokens=8, temperature=0.0)
    request = GenerateRequest("r", "tiny", (Message("user", content),), sampling)
    events = [event async for event in model.generate(request)]
    assert isinstance(events[-1], FinishedEvent)
    return [token for event in events[:-1] for token in event.token_ids], events[-1].usage.cached_tokens


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_the_hubs_names_and_transformers_own_are_read_alike(
    families: dict[str, ModuleType], sample_of: Any, tmp_path: Path
) -> None:
    """Weights as the hub has them, as transformers 5 names its modules, and as it saves them."""
    from safetensors.numpy import load_file, save_file

    sample = sample_of("fuyu", 0)
    stored = load_file(sample.checkpoint / "model.safetensors")
    for name, change in {
        "modules": lambda key: (
            key.replace("language_model.lm_head", "lm_head")
            .replace("language_model.model.", "model.language_model.")
            .replace("vision_embed_tokens", "model.vision_embed_tokens")
        ),
        "saved": lambda key: key.replace("language_model.lm_head", "lm_head"),
    }.items():
        shutil.copytree(sample.checkpoint, tmp_path / name)
        save_file({change(key): value for key, value in stored.items()}, tmp_path / name / "model.safetensors")
        export_checkpoint(tmp_path / name, tmp_path / f"{name}-bundle")
        found, wanted = (
            (folder / "decoder.onnx.data").read_bytes()
            for folder in (tmp_path / f"{name}-bundle", sample.bundle().directory)
        )
        assert found == wanted
