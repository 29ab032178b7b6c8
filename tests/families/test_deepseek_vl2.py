"""DeepSeek-VL2's own: images among more than two, conversations as its processor writes them, and refusals."""

from __future__ import annotations

import asyncio
import copy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from bundle.errors import PromptError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family
from export.exporter import export_checkpoint
from export.models.deepseek_vl2 import DeepSeekVL2
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

SETTINGS = RuntimeSettings(intra_threads=1)


def picture(seed: int, width_px: int, height_px: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8))


IMAGES = [picture(1, 60, 40), picture(2, 30, 61), picture(3, 20, 20)]


def test_none_of_three_images_is_cut(sample_of: Any) -> None:
    sample = sample_of("deepseek_vl2", 0)
    runner = VisionLanguageRunner(sample.bundle(), SETTINGS)
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    for num in (1, 2, 3):
        shown = IMAGES[:num]
        parts = [part for image in shown for part in ("See", image)]
        turn = Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))
        prompt = runner.prompt([turn], shown)
        inputs = sample.inputs(parts)
        assert prompt.prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
        assert any(grid != (1, 1) for _, grid in inputs["views"]) is (num < 3)
        assert spec.among(num).layout(*shown[0].size).rows == (0 if num == 3 else inputs["views"][0][1][0])
        answer = runner.reply_ids(runner.prefill(prompt, 6), 6)
        expected = sample.logits(inputs, answer[:-1])[: len(answer)]
        assert_allclose(runner.answer_logits(prompt, answer)[: len(answer)], expected, atol=1e-3)


def test_an_image_served_alone_is_encoded_anew_among_three(sample_of: Any) -> None:
    bundle = sample_of("deepseek_vl2", 0).bundle()
    runner = VisionLanguageRunner(bundle, SETTINGS)
    asked = [[IMAGES[0]], IMAGES, IMAGES[:2], [IMAGES[0]]]

    async def main() -> list[list[int]]:
        settings = EngineSettings(max_sequences=2, intra_threads=1, prefill_chunk_tokens=32)
        pool = PreprocessPool(settings)
        model = GenerativeModel(bundle, settings, pool)
        model.start()
        try:
            return [await said(model, images) for images in asked]
        finally:
            model.close()
            pool.close()

    for images, tokens in zip(asked, asyncio.run(main()), strict=True):
        prompt = runner.prompt([Turn("user", (*[Placeholder.IMAGE] * len(images), "What?"))], images)
        wanted = runner.reply_ids(runner.prefill(prompt, 8), 8)
        assert [token for token in tokens if token not in bundle.manifest.eos_token_ids] == wanted


async def said(model: GenerativeModel, images: list[Image.Image]) -> list[int]:
    content = (*(ImagePart(png(image)) for image in images), TextPart("What?"))
    request = GenerateRequest("r", "tiny", (Message("user", content),), SamplingParams(max_tokens=8, temperature=0.0))
    events = [event async for event in model.generate(request)]
    assert isinstance(events[-1], FinishedEvent)
    return [token for event in events[:-1] for token in event.token_ids]


def png(image: Image.Image) -> bytes:
    image.save(file := BytesIO(), "PNG")
    return file.getvalue()


def test_a_variant_for_cuda_has_squares_beyond_the_last_patch(sample_of: Any, tmp_path: Path) -> None:
    """DeepSeek-VL2 Tiny has 27 patches a side, of which squares of two leave one over."""
    folder = sample_of("deepseek_vl2", 0).bundle().directory
    variant = quantize_bundle(folder, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    assert variant.target == "cuda"


def test_conversations_are_the_processors(sample_of: Any) -> None:
    sample = sample_of("deepseek_vl2", 1)
    builder = PromptBuilder.from_bundle(sample.bundle())
    layouts = [ImageSpec.read(sample.bundle().path(PREPROCESSOR)).layout(*IMAGES[0].size)]
    turns = [
        Turn("system", (" Be brief. ",)),
        Turn("user", (" Who?",)),
        Turn("assistant", (" A cat.\n",)),
        Turn("user", (Placeholder.IMAGE, "<|ref|>the cat<|/ref|>.")),
    ]
    told = [("system", "Be brief."), ("user", "Who?"), ("assistant", "A cat.")]
    told += [("user", "<image>\n<|ref|>the cat<|/ref|>.")]
    wanted = sample.family.conversation(sample.processor, told, IMAGES[:1])["input_ids"][0].tolist()
    assert builder.build(turns, layouts).token_ids.tolist() == wanted
    with pytest.raises(PromptError, match="a system message stands before all others"):
        builder.build([turns[1], turns[0]], [])


def test_grids_are_those_of_the_processor_and_a_single_tile_is_encoded_once(
    families: dict[str, Any], sample_of: Any
) -> None:
    family, sample = families["deepseek_vl2"], sample_of("deepseek_vl2", 0)
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    config = sample.processor[1]
    for width, height in np.random.default_rng(5).integers(1, 120, (60, 2)).tolist():
        image = picture(width, width, height)
        views, (down, across) = family.views_of(image, config, cuts=True)
        layout, cut = spec.layout(width, height), spec.cut(image)
        assert (max(layout.rows, 1), max(layout.cols, 1)) == (down, across), (width, height)
        assert len(cut) == (1 if down * across == 1 else 1 + down * across)
        found = spec.pixels([cut[-1], *(cut[:-1] or cut)])
        assert_allclose(found, views.numpy(), atol=1e-6)


def test_a_processor_of_other_settings_is_refused(families: dict[str, Any], tmp_path: Any) -> None:
    family = families["deepseek_vl2"]
    family.save(tmp_path / "checkpoint", family.geometries()["odd-patches-added-tokens"])
    file = tmp_path / "checkpoint" / "processor_config.json"
    file.write_text(file.read_text().replace('"sft_format": "deepseek"', '"sft_format": "plain"'))
    with pytest.raises(UnsupportedConfigError, match="sft_format is 'plain'"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", name="tiny")


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("", "tile_tag", "1D", "tile_tag is '1D'"),
        ("", "tile_tag", None, "lacks tile_tag"),
        ("", "global_view_pos", "tail", "global_view_pos is 'tail'"),
        ("", "candidate_resolutions", [[20, 20], [20, 30]], "whole tiles of 20 px"),
        ("vision_config", "class_token", True, "class_token is True"),
        ("vision_config", "global_pool", "avg", "global_pool is 'avg'"),
        ("projector_config", "projector_type", "linear", "projector_type is 'linear'"),
        ("projector_config", "token_pooling", True, "token_pooling is True"),
        ("projector_config", "depth", 1, "two matrices at least"),
        ("projector_config", "n_embed", 41, "projector_config: input_dim 36 and n_embed 41"),
        ("language_config", "use_mla", True, "through latent vectors"),
        ("language_config", "kv_lora_rank", 512, "kv_lora_rank 512"),
        ("language_config", "n_routed_experts", None, "lacks n_routed_experts"),
        ("language_config", "norm_topk_prob", True, "norm_topk_prob is True"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    families: dict[str, Any], part: str, key: str, value: Any, told: str
) -> None:
    config = copy.deepcopy(families["deepseek_vl2"].geometries()["odd-patches-added-tokens"])
    place = config[part] if part else config
    place.pop(key, None) if value is None else place.update({key: value})
    with pytest.raises(UnsupportedConfigError, match=told):
        load_family(config).own_image_spec()


def test_a_config_of_no_class_is_of_this_model(families: dict[str, Any]) -> None:
    config = families["deepseek_vl2"].geometries()["odd-patches-added-tokens"]
    assert isinstance(load_family(config), DeepSeekVL2)
    assert isinstance(load_family({**config, "architectures": ["DeepseekVLV2ForCausalLM"]}), DeepSeekVL2)
    with pytest.raises(UnsupportedConfigError, match="deepseek_vl_v2 of DeepseekVLV2ForCausalLM, Another: built are"):
        load_family({**config, "architectures": ["DeepseekVLV2ForCausalLM", "Another"]})
