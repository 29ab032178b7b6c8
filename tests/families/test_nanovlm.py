"""nanoVLM's own: three generations of one config, tiles stretched to an image's shape, and refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import CheckpointError, PromptError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec, StretchedGrid
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family
from export.exporter import export_checkpoint
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings

SETTINGS = RuntimeSettings(intra_threads=1)


@pytest.fixture
def config(families: dict[str, Any]) -> Any:
    return copy.deepcopy(families["nanovlm"].geometries()["tiles-three-heads-tied"])


def picture(seed: int, width_px: int, height_px: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8))


@pytest.mark.parametrize("grows", [True, False])
def test_images_are_stretched_to_the_tiles_of_the_training_code(families: dict[str, Any], grows: bool) -> None:
    config = {"vit_img_size": 8, "max_img_size": 32, "resize_to_max_side_len": grows}
    grid = StretchedGrid(tile_px=8, longest_px=32, grows=grows)
    sizes = [(int(width), int(height)) for width, height in np.random.default_rng(4).integers(1, 90, (80, 2))]
    for width, height in [*sizes, (8, 8), (16, 16), (5, 300), (300, 5), (33, 11)]:
        image = picture(width, width, height)
        tiles, (down, across) = families["nanovlm"].tiles_of(image, config)
        layout = grid.layout(width, height)
        assert (layout.rows, layout.cols) == ((0, 0) if down * across == 1 else (down, across)), (width, height)
        found = np.stack([np.asarray(tile) for tile in grid.tiles(image, Image.Resampling.BICUBIC)])
        assert_allclose(found.transpose(0, 3, 1, 2) / 255, tiles.numpy(), atol=1e-6)
    assert grid.for_frames.layout(300, 5).num_tiles == 1
    with pytest.raises(ValueError, match="whole ones"):
        StretchedGrid(tile_px=8, longest_px=30, grows=grows)


def test_the_whole_is_the_training_codes_but_for_bytes(families: dict[str, Any]) -> None:
    """There it is scaled as numbers from 0 to 1 (torchvision's resize of a tensor: bilinear, antialiased)."""
    import torch

    config = {"vit_img_size": 16, "max_img_size": 64, "resize_to_max_side_len": True}
    whole = families["nanovlm"].tiles_of(picture(1, 90, 50), config)[0][0]
    pixels = np.asarray(families["nanovlm"].stretched(picture(1, 90, 50), config)).transpose(2, 0, 1)[None] / 255
    wanted = torch.nn.functional.interpolate(torch.tensor(pixels), (16, 16), mode="bilinear", antialias=True)[0]
    assert_allclose(whole, wanted, atol=1.01 / 255)


def test_the_first_generation_answers_a_question_behind_its_image(
    families: dict[str, Any], config: Any, tmp_path: Path
) -> None:
    """As nanoVLM-222M: no tokens of its own, no chat, an image's rows before all else (v0.1, generate.py)."""
    import torch

    family = families["nanovlm"]
    newer = ("vlm_extra_tokens", "lm_chat_template", "mp_image_token_length", "max_img_size", "resize_to_max_side_len")
    older = {key: value for key, value in config.items() if key not in newer}
    family.save(tmp_path / "checkpoint", older | {"lm_vocab_size": 260, "lm_eos_token_id": 0})
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", name="tiny")
    runner = VisionLanguageRunner(open_bundle(tmp_path / "bundle"), SETTINGS)
    reference, (tokenizer, _) = family.model(tmp_path / "checkpoint"), family.processor(tmp_path / "checkpoint")
    image, said = picture(2, 50, 40), tokenizer("Question: What is this? Answer:")["input_ids"]
    for shown in ([image], []):
        parts = (*(Placeholder.IMAGE for _ in shown), "What is this?")
        prompt = runner.prompt([Turn("user", parts)], shown)
        ids = [259] * 16 * len(shown) + said
        assert prompt.prompt.token_ids.tolist() == ids
        prefilled = runner.prefill(prompt, 8)
        answer = runner.reply_ids(prefilled, 8)
        tiles = family.tiles_of(image, older)[0] if shown else None
        with torch.no_grad():
            logits = reference(torch.tensor([ids + answer[:-1]]), tiles=tiles).logits[0, len(ids) - 1 :]
        assert_allclose(runner.answer_logits(prompt, answer)[: len(answer)], logits[: len(answer)], atol=1e-3)
    for turns in ([Turn("system", ("x",)), Turn("user", ("y",))], [Turn("user", (Placeholder.IMAGE,) * 2)]):
        with pytest.raises(PromptError, match="one message of a user about one image"):
            runner.prompt(turns, [image] * sum(len(turn.parts) for turn in turns if Placeholder.IMAGE in turn.parts))


@pytest.mark.parametrize("number", [0, 1])
def test_conversations_are_the_tokenizers_with_images_before_a_messages_text(sample_of: Any, number: int) -> None:
    sample = sample_of("nanovlm", number)
    bundle = sample.bundle()
    builder, (tokenizer, config) = PromptBuilder.from_bundle(bundle), sample.processor
    image = picture(3, 60, 30)
    spec_layout = _layout(bundle, image)
    turns = [
        Turn("user", ("What is ", Placeholder.IMAGE, "it?")),
        Turn("assistant", ("A cat.",)),
        Turn("user", (Placeholder.IMAGE, "And this?")),
    ]
    grid = sample.family.tiles_of(image, config)[1]
    first = sample.family.image_string(config, [grid, grid])
    half = len(first) // 2  # each stands before its own message's text
    told = [
        {"role": "user", "content": first[:half] + "What is it?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": first[half:] + "And this?"},
    ]
    wanted = tokenizer.apply_chat_template(told, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert builder.build(turns, [spec_layout] * 2).token_ids.tolist() == wanted
    with_text = builder.build([Turn("user", ("<|image|> and <row_1_col_1>?",))], []).token_ids.tolist()
    assert not {260, 262} & set(with_text)  # a caller's text is text


def _layout(bundle: Any, image: Image.Image) -> Any:
    return ImageSpec.read(bundle.path(PREPROCESSOR)).layout(*image.size)


def test_the_tokenizer_is_looked_for_beside_the_weights(families: dict[str, Any], config: Any, tmp_path: Path) -> None:
    families["nanovlm"].save(tmp_path / "checkpoint", config)
    (tmp_path / "checkpoint" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="the tokenizer of HuggingFaceTB/SmolLM2-360M-Instruct: download"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", name="tiny")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vit_cls_flag": True}, "vit_cls_flag is True"),
        ({"lm_attn_scaling": 2.0}, "lm_attn_scaling is 2.0"),
        ({"lm_use_tokens": True}, "lm_use_tokens is True"),
        ({"mp_pixel_shuffle_factor": 3}, "mp_pixel_shuffle_factor 3 does not divide"),
        ({"mp_image_token_length": 64}, "mp_image_token_length is 64"),
        ({"max_img_size": 256}, "vlm_extra_tokens.r1c5 is None"),
        ({"vlm_extra_tokens": {"image_token": "<|image|>"}}, "tiles without the whole image"),
        ({"vlm_extra_tokens": {"global_image_token": "<|global|>"}}, "name no image_token"),
        ({"lm_re_base": None}, "config.json lacks lm_re_base"),
    ],
)
def test_what_is_not_built_is_refused_by_name(config: Any, change: dict[str, Any], told: str) -> None:
    changed = {key: value for key, value in {**config, **change}.items() if value is not None}
    with pytest.raises(UnsupportedConfigError, match=told):
        _ = load_family({"model_type": "nanovlm", **changed}).decoder


def test_a_config_without_a_type_is_known_by_its_keys(sample_of: Any) -> None:
    sample = sample_of("nanovlm", 0)
    assert "model_type" not in json.loads((sample.checkpoint / "config.json").read_text())
    assert sample.bundle().manifest.model_type == "nanovlm"
