"""Moondream 2's own: crops that overlap, one stretch before the question, the published templates, and refusals."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bundle.directory import open_bundle
from bundle.errors import PromptError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec, StackedCrops
from bundle.image.layout import TileLayout
from bundle.layouts.moondream import MoondreamPrompt
from bundle.layouts.prompt import Span
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.text import Tokenizer as BundleTokenizer
from export.architectures import load_family
from export.exporter import export_checkpoint
from export.found_processor import FoundProcessor
from export.vocabulary import Vocabulary
from runtime.encoder import open_encoder
from runtime.encoders import encode_images
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

SETTINGS = RuntimeSettings(intra_threads=1)
PUBLISHED = StackedCrops(crop_px=378, margin_px=56, most_crops=12)


def picture(seed: int, width_px: int = 70, height_px: int = 90) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8))


def test_a_canvas_holds_the_whole_and_the_crops_of_the_authors(families: dict[str, Any]) -> None:
    family = families["moondream1"]
    sizes = [(int(width), int(height)) for width, height in np.random.default_rng(3).integers(40, 3000, (60, 2))]
    for width, height in [*sizes, (378, 379), (379, 379), (645, 644), (400, 9000), (9000, 400), (1, 1)]:
        rows, cols = family.tiling(height - 112, width - 112, 266, 12)
        assert PUBLISHED.layout(width, height).whole_px == (378 + rows * 266 + 112, cols * 266 + 112), (width, height)
    tower = {"crop_size": 20, "enc_patch_size": 4, "overlap_margin": 1, "max_crops": 6}
    spec = ImageSpec(
        geometry=StackedCrops(crop_px=20, margin_px=4, most_crops=6),
        resample="lanczos",
        rescale_factor=1 / 255,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    crops, (rows, cols) = family.crops_of(picture(1), tower)
    canvas = spec.pixels(spec.cut(picture(1)))[0]
    assert rows * cols > 3
    for number, crop in enumerate(crops.numpy()):
        row, col = divmod(number - 1, cols)
        top, left = (0, 0) if not number else (20 + 12 * row, 12 * col)
        assert_allclose(canvas[:, top : top + 20, left : left + 20], crop, atol=1e-6)


def test_a_frame_is_one_crop_and_fewer_pixels_are_fewer_crops() -> None:
    assert PUBLISHED.for_frames.layout(3000, 2000).whole_px == PUBLISHED.tile_size_px == (756, 378)
    small = PUBLISHED.within(4 * 378**2)
    assert small.most_crops == 4
    height, width = small.layout(3000, 2000).whole_px or (0, 0)
    assert (height - 378) * width <= 4 * 378**2
    sides = PUBLISHED.sides
    heights = {PUBLISHED.layout(width, 900).whole_px for width in range(100, 3000, 100)}
    assert all(not (each[0] % sides.step_px or each[1] % sides.step_px) for each in heights if each)
    with pytest.raises(ValueError, match="a crop is 378 x 378"):
        PUBLISHED.within(1000)
    with pytest.raises(ValueError, match="leave nothing"):
        StackedCrops(crop_px=20, margin_px=10, most_crops=1)


def test_features_at_the_published_grid_are_the_references(families: dict[str, Any], tmp_path: Path) -> None:
    """27 patches a side, margins of 4, and pictures that are averaged over cells which share patches."""
    import torch
    from safetensors.torch import load_file

    family = families["moondream1"]
    config = copy.deepcopy(family.geometries()["narrow-tower-three-heads"])
    vision = {"crop_size": 54, "enc_patch_size": 2, "overlap_margin": 4, "max_crops": 12, "enc_dim": 12}
    config["config"]["vision"] |= {**vision, "enc_n_layers": 1}
    config["config"]["text"] |= {"prefix_attn": 730, "n_layers": 1, "max_context": 800}
    family.save(tmp_path / "checkpoint", config)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", name="tiny")
    encoder = open_encoder(open_bundle(tmp_path / "bundle"), "vision_encoder", SETTINGS)
    spec = ImageSpec.read(tmp_path / "bundle" / PREPROCESSOR)
    weights = load_file(tmp_path / "checkpoint" / "model.safetensors")
    shown = [picture(1, 150, 90), picture(2, 50, 100)]
    found = encode_images(encoder, [tuple(spec.groups(spec.cut(image))) for image in shown], 1)
    for image, features in zip(shown, found, strict=True):
        crops, tiling = family.crops_of(image, config["config"]["vision"])
        with torch.no_grad():
            wanted = family.image_features(
                lambda name: weights[f"model.{name}"], config["config"]["vision"], crops, tiling
            )
        assert_allclose(features.reshape(wanted.shape), wanted.numpy(), atol=1e-4)


def test_all_before_the_question_sees_all_of_it() -> None:
    prompt = MoondreamPrompt(image_token="<|size|>", image_token_id=6, tokens_per_tile=3)
    assert prompt.text(TileLayout(whole_px=(40, 20))) == "<|size|>" * 3
    six, two = np.zeros(6, np.int64), np.zeros(2, np.int64)
    assert prompt.seen(six, [Span(1, 4, 0, 0)]).tolist() == [[0, 0, 0, 0, 4, 5], [4, 4, 4, 4, 5, 6]]
    assert prompt.seen(two, []).tolist() == [[0, 1], [1, 2]]  # a question alone sees nothing behind it


def test_questions_about_one_image_share_its_rows_however_prompts_are_cut(sample_of: Any) -> None:
    """A run takes 16 tokens, and an image with the token before it 26, which are run at once and found by 16."""
    bundle = sample_of("moondream1", 0).bundle()
    asked = [
        (picture(1), "What is it?"),
        (picture(1), "Who else?"),
        (picture(2), "What is it?"),
        (picture(1),),
        ("So?",),
    ]
    runner = VisionLanguageRunner(bundle, SETTINGS)
    cached = []
    for parts, (tokens, num_cached) in zip(asked, asyncio.run(served(bundle, asked)), strict=True):
        turn = Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))
        prompt = runner.prompt([turn], [part for part in parts if not isinstance(part, str)])
        assert [token for token in tokens if token] == runner.reply_ids(runner.prefill(prompt, 8), 8)
        cached.append(num_cached)
    assert cached == [0, 32, 0, 16, 0]


async def served(bundle: Any, asked: list[tuple[Any, ...]]) -> list[tuple[list[int], int]]:
    settings = EngineSettings(max_sequences=2, intra_threads=1, prefill_chunk_tokens=16)
    pool = PreprocessPool(settings)
    model = GenerativeModel(bundle, settings, pool)
    model.start()
    try:
        return [await answer(model, parts) for parts in asked]
    finally:
        model.close()
        pool.close()


async def answer(model: GenerativeModel, parts: tuple[Any, ...]) -> tuple[list[int], int]:
    content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(png(part)) for part in parts)
    request = GenerateRequest("r", "tiny", (Message("user", content),), SamplingParams(max_tokens=8, temperature=0.0))
    events = [event async for event in model.generate(request)]
    assert isinstance(events[-1], FinishedEvent)
    return [token for event in events[:-1] for token in event.token_ids], events[-1].usage.cached_tokens


def png(image: Image.Image) -> bytes:
    image.save(file := BytesIO(), "PNG")
    return file.getvalue()


def test_one_message_about_one_image_is_all_it_takes(sample_of: Any) -> None:
    bundle = sample_of("moondream1", 0).bundle()
    builder, asked, layout = PromptBuilder.from_bundle(bundle), Turn("user", ("x",)), TileLayout(whole_px=(40, 20))
    assert bundle.manifest.eos_token_ids == (0,)  # whatever generation_config.json says, of the tokenizer of before
    for turns in ([Turn("system", ("x",)), asked], [asked, Turn("assistant", ("x",)), asked]):
        with pytest.raises(PromptError, match="one message of a user"):
            builder.build(turns, [])
    with pytest.raises(PromptError, match="one message about one image"):
        builder.build([Turn("user", (Placeholder.IMAGE, "x", Placeholder.IMAGE))], [layout, layout])
    written = builder.build([Turn("user", (Placeholder.IMAGE, "is <|two|> one?"))], [layout]).token_ids.tolist()
    assert written.count(2) == 1  # a caller's text is text


def test_the_published_templates_are_read_from_ids(tmp_path: Path) -> None:
    """Words at the published ids, for starmie's own tokenizer is not at hand."""
    words = {15381: "query", 32708: "describe", 6382: "normal", 12492: "short"}
    special = [f"<|{number}|>" for number in range(10)]
    vocab = {text: number for number, text in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = []
    for number, text in words.items():
        for end in range(2, len(text)):
            if text[:end] not in vocab:
                vocab[text[:end]] = 40_000 + len(vocab)
            merges.append((text[: end - 1], text[end - 1]))
        vocab[text] = number
        merges.append((text[:-1], text[-1]))
    backend = Tokenizer(models.BPE(vocab, list(dict.fromkeys(merges))))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.save(str(tmp_path / "tokenizer.json"))
    family = load_family({"model_type": "moondream1", "architectures": ["HfMoondream"], "config": {}})
    found = FoundProcessor({}, family.own_image_spec(), Vocabulary.read(tmp_path, lower_cases=False), {})
    prompt = family.image_prompt(found)
    builder = PromptBuilder(BundleTokenizer(backend), family.default_template(found), prompt, {})
    layout = PUBLISHED.layout(800, 600)
    asked = builder.build([Turn("user", ("why?", Placeholder.IMAGE))], [layout]).token_ids.tolist()
    assert asked == [0, *[6] * 729, 1, 15381, 2, *backend.encode("why?").ids, 3, 3]
    alone = builder.build([Turn("user", (Placeholder.IMAGE,))], [layout]).token_ids.tolist()
    assert alone == [0, *[6] * 729, 1, 32708, 2, 6382, 3]
    assert builder.build([Turn("user", ("why?",))], []).token_ids.tolist()[:4] == [0, 1, 15381, 2]


def test_a_config_of_no_class_is_of_this_model() -> None:
    """A config that is saved without its model has null for its classes."""
    family = load_family({"model_type": "moondream1", "architectures": None, "config": None})
    assert family.end_ids == (0,)  # type: ignore[attr-defined]


def test_the_tokenizer_of_older_revisions_is_refused(sample_of: Any, tmp_path: Path) -> None:
    sample = sample_of("moondream1", 0)
    folder = Path(shutil.copytree(sample.checkpoint, tmp_path / "checkpoint"))
    sample.family.save_tokenizer(folder, ["<|endoftext|>"])
    with pytest.raises(UnsupportedConfigError, match=r"no special token with the id 6\. .*moondream/starmie-v1"):
        export_checkpoint(folder, tmp_path / "bundle", name="tiny")
    config = json.loads((sample.checkpoint / "config.json").read_text())
    config["config"]["tokenizer"]["templates"]["query"] = {"prefix": [1, 9], "suffix": [3]}
    shutil.copy(sample.checkpoint / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedConfigError, match="no special token with the id 9"):
        export_checkpoint(folder, tmp_path / "bundle", name="tiny")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text_config": {"model_type": "phi"}}, "a revision of 2024"),
        ({"architectures": ["Moondream"]}, "a revision of 2024"),
        ({"quantization_config": {"quant_method": "int4"}}, "quantization_config is"),
        ({"config": {"text": {"group_size": 128}}}, "group_size is 128"),
        ({"config": {"text": {"moe": {"num_experts": 64}}}}, "text.moe"),
        ({"config": {"text": {"prefix_attn": 700}}}, "prefix_attn is 700"),
        ({"config": {"text": {"n_heads": 16}}}, "heads of 64"),
        ({"config": {"vision": {"proj_out_dim": 1024}}}, "proj_out_dim 1024"),
        ({"config": {"vision": {"overlap_margin": 14}}}, "overlap_margin 14"),
        ({"config": {"vision": {"in_channels": 4}}}, "in_channels is 4"),
        ({"config": {"skills": {}}}, "config has skills"),
    ],
)
def test_what_is_not_built_is_refused_by_name(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=told):
        load_family({"model_type": "moondream1", "architectures": ["HfMoondream"], "config": {}, **change})
