"""Gemma 4's ways with images and rows, against transformers' own; and what a config or a request must not say."""

from __future__ import annotations

import asyncio
import copy
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
from safetensors.numpy import load_file, save_file

from bundle.directory import Bundle, open_bundle
from bundle.errors import CheckpointError, QuantizationError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, Area, ImageSpec, SoftTokens
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family
from export.exporter import export_checkpoint
from export.vision_language import VisionLanguage
from graphs.store import open_graph
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from quant.samples.built_in import built_in_samples
from runtime.encoder import open_encoder
from runtime.encoders import encode_images
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

SETTINGS = RuntimeSettings(intra_threads=1)
SIZES = st.integers(1, 3000)


@hypothesis_settings(max_examples=200, deadline=None, derandomize=True)
@given(width_px=SIZES, height_px=SIZES, most=st.sampled_from([70, 280, 1120]))
def test_an_image_of_any_size_is_scaled_as_the_processor_scales_it(width_px: int, height_px: int, most: int) -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

    expected = get_aspect_ratio_preserving_size(height_px, width_px, 16, most * 9, 3)
    layout = SoftTokens(step_px=48, most_tokens=most).layout(width_px, height_px)
    assert layout.whole_px == expected


@pytest.mark.parametrize("number", [0, 1])
def test_pixels_are_the_processors_patch_by_patch(
    number: int, sample_of: Any, conversations: dict[str, list[str | Image.Image]]
) -> None:
    sample = sample_of("gemma4", number)
    spec, patch = ImageSpec.read(sample.bundle().path(PREPROCESSOR)), 4
    for image in conversations["two images"][1:4:2]:
        found = sample.processor.image_processor([image], return_tensors="np")
        (pixels,) = spec.preprocess([image]).pixel_values
        _, height, width = pixels.shape
        grid = pixels.reshape(3, height // patch, patch, width // patch, patch).transpose(1, 3, 2, 4, 0)
        patches = grid.reshape(-1, 3 * patch**2)
        np.testing.assert_array_equal(patches, found["pixel_values"][0][: len(patches)])
        assert (found["image_position_ids"][0][len(patches) :] == -1).all()


def test_prompts_in_pieces_and_behind_rows_that_are_here_are_answered_as_alone(sample_of: Any) -> None:
    """Layers without rows of their own read what a copied or kept prefix holds of others; 32 tokens run at once."""
    bundle = sample_of("gemma4", 0).bundle()
    shown, other = _picture(1), _picture(2)
    asked = [
        (shown, "What stands here, and what does not?", other, "Tell me."),
        (shown, "What stands here, and what does not?", other, "Tell him instead."),
        (shown, "What stands here, and what does not?", shown, "Tell me."),
        ("Only words, and more of them than run at once.",),
    ]
    runner, cached = VisionLanguageRunner(bundle, SETTINGS), []
    for parts, (tokens, num_cached) in zip(asked, asyncio.run(_served(bundle, asked)), strict=True):
        turn = Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))
        images = [part for part in parts if not isinstance(part, str)]
        alone = runner.reply_ids(runner.prefill(runner.prompt([turn], images), 8), 8)
        assert [token for token in tokens if token not in bundle.manifest.eos_token_ids] == alone
        cached.append(num_cached)
    assert cached[0] == 0 < cached[2] < cached[1]


async def _served(bundle: Bundle, asked: list[tuple[str | Image.Image, ...]]) -> list[tuple[list[int], int]]:
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


def _picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 60, 3), np.uint8))


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_layers_that_read_anothers_rows_have_none(sample_of: Any) -> None:
    manifest = sample_of("gemma4", 0).bundle().manifest
    found = {(state.layer, state.shape[1], state.shape[3]) for state in manifest.states}
    assert found == {(0, 1, 16), (1, 1, 16), (2, 1, 24)}  # of five layers
    assert manifest.decoder.window_tokens == 6


@pytest.mark.parametrize(("dialect", "kind"), [("contrib", "GatherBlockQuantized"), ("portable", "Gather")])
def test_both_tables_are_kept_in_codes_alone(dialect: str, kind: str, sample_of: Any, tmp_path: Path) -> None:
    parent = sample_of("gemma4", 0).bundle(dialect)
    quantize_bundle(parent.directory, tmp_path / "int8", weights="fp32,embed_tokens=int8")
    made = open_bundle(tmp_path / "int8", allow_ungated=True)
    graph = open_graph(made.graph_path("embed_tokens")).graph
    tables = [value for value in graph.initializers.values() if len(value.shape or ()) == 2]
    assert sum(node.op_type == kind for node in graph) == (2 if dialect == "contrib" else 4)
    wide = [value for value in tables if value.shape[1] >= 64]  # the rest are scales
    assert len(wide) == 2
    assert {str(value.dtype) for value in wide} <= {"INT8", "UINT8"}


def test_weights_for_sounds_and_of_layers_without_rows_are_left_out(
    sample_of: Any, families: dict[str, ModuleType], tmp_path: Path
) -> None:
    """First releases hold the latter; what nobody knows is an error that names it."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(sample_of("gemma4", 0).checkpoint, checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    more = {
        "model.audio_tower.layers.0.norm_out.weight": np.ones(8, np.float32),
        "model.embed_audio.embedding_projection.weight": np.ones((64, 8), np.float32),
        "model.language_model.layers.3.self_attn.k_proj.weight": np.ones((16, 64), np.float32),
        "model.language_model.layers.4.self_attn.v_norm.weight": np.ones(24, np.float32),
    }
    save_file({**weights, **more}, checkpoint / "model.safetensors", {"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "audio_config": {"model_type": "gemma4_audio"}}))
    export_checkpoint(checkpoint, tmp_path / "bundle", name="tiny")
    save_file(
        {**weights, "model.language_model.layers.2.self_attn.x": np.ones(1, np.float32)},
        checkpoint / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn\.x"):
        export_checkpoint(checkpoint, tmp_path / "other", name="tiny")


def test_a_config_says_heads_by_layer_or_by_kind(families: dict[str, ModuleType]) -> None:
    older = families["gemma4"].config()
    newer = copy.deepcopy(older)
    for key in ("global_head_dim", "num_global_key_value_heads"):
        del newer["text_config"][key]
    newer["text_config"]["per_layer_config"] = {str(number): {"head_dim": 24} for number in (2, 4)}
    found = [_decoder(each) for each in (older, newer)]
    assert [[each.head_size_of(number) for number in range(5)] for each in found] == [[16, 16, 24, 16, 24]] * 2
    assert [[each.source_of(number) for number in range(5)] for each in found] == [[None, None, None, 1, 2]] * 2
    bare = {key: value for key, value in older["text_config"].items() if key not in ("layer_types", "global_head_dim")}
    decoder = _decoder({**older, "text_config": {**bare, "num_hidden_layers": 14, "num_kv_shared_layers": 4}})
    sizes = [decoder.head_size_of(number) for number in range(14)]
    assert sizes == [16] * 5 + [512] + [16] * 5 + [512, 16, 512]  # the last sees everything
    assert [decoder.source_of(number) for number in range(9, 14)] == [None, 9, 5, 9, 5]


def _decoder(config: dict[str, Any]) -> Any:
    family = load_family(config)
    assert isinstance(family, VisionLanguage)
    return family.decoder


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("text_config", {"enable_moe_block": True}, "enable_moe_block is True"),
        ("text_config", {"use_bidirectional_attention": "vision"}, "'vision': tokens that see what comes behind"),
        ("text_config", {"num_kv_shared_layers": 3}, r"reads the keys .* there are sliding_attention"),
        ("text_config", {"num_kv_shared_layers": 5}, "there are none"),
        ("text_config", {"vocab_size_per_layer_input": 12}, "tables of the same tokens"),
        ("text_config", {"per_layer_config": {"2": {"sliding_window": 3}}}, "sliding_window of layer 2; built are"),
        ("text_config", {"per_layer_config": {"2": {"head_dim": 24}}}, "heads of one size for each kind"),
        ("text_config", {"per_layer_config": {"0": {"num_key_value_heads": 2}}}, "multiple of the 2 .* of layer 0"),
        ("vision_config", {"num_key_value_heads": 1}, "num_key_value_heads is 1"),
        ("vision_config", {"head_dim": 10}, "two quarters of a head each"),
        ("vision_config", {"rope_parameters": {"rope_type": "yarn"}}, "angles by column and row"),
    ],
)
def test_what_is_not_built_is_named(
    part: str, changes: dict[str, Any], said: str, families: dict[str, ModuleType]
) -> None:
    config = families["gemma4"].config()
    config[part] |= changes
    with pytest.raises(UnsupportedConfigError, match=said):
        _decoder(config)


def test_images_of_another_processor_are_refused(families: dict[str, ModuleType], sample_of: Any) -> None:
    family = load_family(families["gemma4"].config())
    spec = ImageSpec.read(sample_of("gemma4", 0).bundle().path(PREPROCESSOR))
    family.check_images(spec)
    for geometry, said in (
        (Area(step_px=12, least_px=144, most_px=9999), "takes squares of 3 x 3 patches of 4 pixels"),
        (SoftTokens(step_px=16, most_tokens=70), "pooling_kernel_size of the processor"),
        (SoftTokens(step_px=12, most_tokens=140), "the longest image is 420 patches wide"),
    ):
        with pytest.raises(UnsupportedConfigError, match=said):
            family.check_images(spec.model_copy(update={"geometry": geometry}))


def test_a_processor_of_videos_that_contradicts_the_images_is_refused(
    families: dict[str, ModuleType], sample_of: Any
) -> None:
    family = load_family(families["gemma4"].config())
    assert isinstance(family, VisionLanguage)
    spec = ImageSpec.read(sample_of("gemma4", 0).bundle().path(PREPROCESSOR))
    sizes = {"patch_size": 4, "pooling_kernel_size": 3}
    found = [family.with_frames(spec, each, "f").geometry for each in (sizes, {**sizes, "max_soft_tokens": 140})]
    assert [getattr(geometry, "frame_tokens", None) for geometry in found] == [70, 140]
    assert found[1].within(144 * 100).model_dump()["frame_tokens"] == 100
    with pytest.raises(UnsupportedConfigError, match="f: patch_size 4 with pooling_kernel_size 2, where images"):
        family.with_frames(spec, {**sizes, "pooling_kernel_size": 2}, "f")


def test_what_reads_a_cache_by_its_own_layer_is_refused(sample_of: Any, tmp_path: Path) -> None:
    bundle = sample_of("gemma4", 0).bundle()
    samples = built_in_samples(bundle, "calibration")
    with pytest.raises(QuantizationError, match="--kv-cache int8: 2 layers of the decoder read the rows of others"):
        quantize_bundle(
            bundle.directory,
            tmp_path / "codes",
            weights="fp32",
            options=Options(kv_cache="int8"),
            calibration=samples,
        )
    with pytest.raises(QuantizationError, match="--target cuda: layers of tiny read the caches of others"):
        quantize_bundle(bundle.directory, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    for changes, said in (
        ({"segments": [1]}, "per_layer_inputs"),
        ({"task_vectors": True}, "--task-vectors"),
        ({"length_groups": 2}, "--length-groups .* layers 3, 4 read those of other layers"),
    ):
        with pytest.raises(UnsupportedConfigError, match=said):
            export_checkpoint(sample_of("gemma4", 0).checkpoint, tmp_path / "other", **changes)


def test_layers_without_rows_are_no_segment(families: dict[str, ModuleType], tmp_path: Path) -> None:
    """Not even where nothing else is in the way: no windows, and no numbers of tokens for layers."""
    family, full = families["gemma4"], ["full_attention"] * 5
    family.save(tmp_path / "c", family.config({"layer_types": full, "hidden_size_per_layer_input": 0}))
    with pytest.raises(UnsupportedConfigError, match=r"--decoder-segments .* layers 3, 4 read those of other layers"):
        export_checkpoint(tmp_path / "c", tmp_path / "b", segments=[3])


class _Frames:
    """In the place of transformers' processor of videos, which wants torchvision: frames that need no scaling."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def __call__(self, videos: list[list[Image.Image]], **_: Any) -> dict[str, Any]:
        from transformers.video_utils import VideoMetadata

        (frames,) = videos
        seen = self._images(images=frames, return_tensors="pt", do_resize=False)
        told = VideoMetadata(total_num_frames=len(frames), fps=FPS, frames_indices=list(range(len(frames))))
        return {
            "pixel_values_videos": seen["pixel_values"],
            "video_position_ids": seen["image_position_ids"],
            "num_soft_tokens_per_video": seen["num_soft_tokens_per_image"][:1],
            "num_frames_per_video": [len(frames)],
            "video_metadata": [told],
        }


FPS = 0.02
"""A frame every 50 seconds: times have minutes."""
TURNS = [Turn("user", (Placeholder.VIDEO, " and ", Placeholder.IMAGE, "What happens?"))]


@pytest.mark.parametrize("number", [0, 1])
def test_a_video_stands_in_prompts_and_is_answered_as_in_transformers(number: int, sample_of: Any) -> None:
    """Frames of 30 tokens at most, five wide and six high, where images have 70."""
    import torch

    sample = sample_of("gemma4", number)
    vision = sample.model.config.vision_config
    side = vision.patch_size * vision.pooling_kernel_size
    rng = np.random.default_rng(number)
    frames = [Image.fromarray(rng.integers(0, 256, (6 * side, 5 * side, 3), np.uint8)) for _ in range(3)]
    image = _picture(number)
    runner = VisionLanguageRunner(sample.bundle(), SETTINGS)
    prompt = _filled(sample.bundle(), frames, image)
    wanted = _inputs(sample, frames, image)
    assert prompt.prompt.token_ids.tolist() == wanted["input_ids"][0].tolist()
    prefilled = runner.prefill(prompt, 16)
    tokens = runner.reply_ids(prefilled, 16)
    assert len(tokens) > 4
    wanted["num_frames_per_video"] = torch.tensor([len(frames)])
    expected = sample.logits(wanted, tokens[:-1])
    np.testing.assert_allclose(runner.forced_logits(prefilled, tokens), expected, atol=1e-3)


def _inputs(sample: Any, frames: list[Image.Image], image: Image.Image) -> Any:
    """Return what transformers makes of a video, an image and a question."""
    processor = sample.processor
    processor.video_processor = _Frames(processor.image_processor)
    content = [{"type": "video"}, {"type": "text", "text": " and "}, {"type": "image"}]
    asked = [{"role": "user", "content": [*content, {"type": "text", "text": "What happens?"}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    return processor(text=text, images=[image], videos=[frames], return_tensors="pt")


def _filled(bundle: Bundle, frames: list[Image.Image], image: Image.Image) -> FilledPrompt:
    """Return our prompt of the same, through the bundle's graphs."""
    builder, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))
    groups, own = builder.image_prompt.frame_groups, spec.of_video(len(frames), *frames[0].size)
    assert groups is not None
    assert own is not None
    assert own.tile_size_px == frames[0].size[::-1]
    times_s = [number / FPS for number in range(len(frames))]
    layouts = [groups.layout(times_s, len(frames) / FPS, own.tile_size_px), spec.layout(*image.size)]
    tiles = [own.grouped(own.pixels([frame])) for frame in frames]
    encoder = open_encoder(bundle, "vision_encoder", SETTINGS)
    *of_frames, of_image = encode_images(encoder, [*([tile] for tile in tiles), list(spec.groups(spec.cut(image)))], 2)
    features = np.concatenate([each.reshape(-1, each.shape[-1]) for each in of_frames])
    return FilledPrompt.of(builder.build(TURNS, layouts), [features, of_image])
