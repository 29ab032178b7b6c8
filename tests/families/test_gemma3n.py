"""Gemma 3n's tower against timm, rows of tokens that stand elsewhere, prompts in chunks; and what is refused."""

from __future__ import annotations

import asyncio
import copy
import gzip
import importlib.util
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from bundle.directory import Bundle
from bundle.errors import UnsupportedConfigError
from bundle.image import PREPROCESSOR, Fixed, ImageSpec
from bundle.prompt import Placeholder, Turn
from export.architectures import load_family
from export.exporter import export_checkpoint
from export.graph import build_model
from export.nn.dialects import DIALECTS
from export.vision_language import VisionLanguage
from runtime.decoder import TokenGraphs
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

TIMM = Path(__file__).parents[1] / "data" / "timm"
TOWER = "model.vision_tower.timm_model."
SETTINGS = RuntimeSettings(intra_threads=1)


def test_the_reference_of_the_tower_is_timms(families: dict[str, ModuleType]) -> None:
    import torch
    from weight_shapes import drawn_weight

    spec = importlib.util.spec_from_file_location("timm_make", TIMM / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    reference = families["gemma3n"].reference()
    tower = reference.Encoder(reference.block_args(*make.BLOCKS), make.STEM, make.RESOLUTION)
    drawn = {key: torch.from_numpy(drawn_weight(key, tuple(each.shape))) for key, each in tower.state_dict().items()}
    tower.load_state_dict(drawn)
    pixels = np.random.default_rng(7).random((2, 3, make.SIDE_PX, make.SIDE_PX), np.float32)
    with torch.no_grad():
        found = tower(torch.from_numpy(pixels)).numpy()[:, : make.CHANNELS]
    assert_allclose(found, np.load(TIMM / "mobilenetv5" / "expected.npz")["features"], atol=1e-5)


def test_the_tower_without_arguments_has_timms_weights(families: dict[str, ModuleType]) -> None:
    """All 548 of `mobilenetv5_300m_enc`, each of its shape."""
    config = families["gemma3n"].config()
    tower = {key: value for key, value in config["vision_config"].items() if key != "model_args"}
    whole = {**config, "vision_config": {**tower, "model_args": None}, "vision_soft_tokens_per_image": 256}
    dialect = DIALECTS["contrib"]()
    family = load_family(whole)
    assert isinstance(family, VisionLanguage)
    assert family.image_size_px == 768
    graph = build_model("vision_encoder", family.graphs(dialect)["vision_encoder"], dialect).graph
    weights = [each for each in graph.initializers.values() if hasattr(each, "source_keys")]
    found = {key.removeprefix(TOWER): each for each in weights for key in each.source_keys if TOWER in key}
    lines = gzip.decompress((TIMM / "mobilenetv5" / "weights.txt.gz").read_bytes()).decode().splitlines()
    wanted = {name: tuple(map(int, shape)) for name, *shape in map(str.split, lines)}
    assert found.keys() == wanted.keys()
    assert len(found) == 548
    assert all(weight.fits(wanted[name]) for name, weight in found.items())


def test_tokens_of_images_and_sounds_have_rows_of_their_own(sample_of: Any) -> None:
    import torch

    sample = sample_of("gemma3n", 0)
    embeddings = TokenGraphs(sample.bundle(), SETTINGS).embed(np.arange(sample.family.VOCAB)[None])
    model = sample.model.model
    with torch.no_grad():
        for first, end, part in ((262, 265, model.embed_vision), (265, 268, model.embed_audio)):
            expected = part(input_ids=torch.arange(first, end)).numpy()
            assert_allclose(embeddings[0, first:end], expected, atol=1e-5)


def test_requests_about_one_image_agree_in_chunks_and_together(sample_of: Any) -> None:
    """Prompts of 32 tokens a run, one after another and at once: the same image twice, two images, and none."""
    bundle = sample_of("gemma3n", 0).bundle()
    first, second = _picture(1), _picture(2)
    asked: list[tuple[str | Image.Image, ...]] = [
        ("Look at ", first, " and then at ", second, " for a while."),
        ("Look at ", first, " and then at ", first, " again."),
        ("What is " + "very " * 20 + "far?",),
        ("Look at ", first, " and then at ", second, " for a day."),
    ]
    runner, alone = VisionLanguageRunner(bundle, SETTINGS), []
    for parts in asked:
        turn = Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))
        images = [part for part in parts if not isinstance(part, str)]
        alone.append(runner.reply_ids(runner.prefill(runner.prompt([turn], images), 8), 8))
    in_turn = asyncio.run(_said(bundle, asked))
    assert [said for said, _ in in_turn] == alone
    assert in_turn[0][1] == 0 < in_turn[3][1]
    assert [said for said, _ in asyncio.run(_said(bundle, asked, at_once=True))] == alone
    assert len({tuple(said) for said in alone}) > 2


async def _said(
    bundle: Bundle, asked: list[tuple[str | Image.Image, ...]], *, at_once: bool = False
) -> list[tuple[list[int], int]]:
    settings = EngineSettings(max_sequences=3, intra_threads=1, prefill_chunk_tokens=32)
    pool = PreprocessPool(settings)
    model = GenerativeModel(bundle, settings, pool)
    model.start()
    try:
        waits = [_answer(model, bundle, parts) for parts in asked]
        return list(await asyncio.gather(*waits)) if at_once else [await each for each in waits]
    finally:
        model.close()
        pool.close()


async def _answer(
    model: GenerativeModel, bundle: Bundle, parts: tuple[str | Image.Image, ...]
) -> tuple[list[int], int]:
    content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(_png(part)) for part in parts)
    request = GenerateRequest("r", "tiny", (Message("user", content),), SamplingParams(max_tokens=8, temperature=0.0))
    events = [event async for event in model.generate(request)]
    assert isinstance(events[-1], FinishedEvent)
    tokens = [token for event in events[:-1] for token in event.token_ids]
    return [each for each in tokens if each not in bundle.manifest.eos_token_ids], events[-1].usage.cached_tokens


def _picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 60, 3), np.uint8))


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    *parts, last = path.split(".")
    around = changed
    for part in parts:
        around = around[part]
    around[last] = value
    return changed


REFUSED = [
    ("text_config.model_type", "gemma2", "Gemma 3n's is gemma3n_text"),
    ("text_config.altup_active_idx", 4, "altup_active_idx 4: there are altup_num_inputs 4 streams"),
    ("text_config.hidden_size_per_layer_input", 0, "are Gemma 4's, not Gemma 3n's"),
    ("text_config.intermediate_size", [96] * 4, "intermediate_size has 4 numbers; there are 5 layers"),
    ("text_config.activation_sparsity_pattern", [0.5], "activation_sparsity_pattern has 1 numbers"),
    ("text_config.activation_sparsity_pattern", [1.0] * 5, "from 0 to below 1"),
    ("text_config.num_kv_shared_layers", 4, "num_kv_shared_layers 4 of 5 layers"),
    ("text_config.vocab_size", 300, r"audio_config.vocab_offset 265: tokens from there to 299 .* 3 rows"),
    ("audio_config.vocab_offset", 262, "vision_config.vocab_offset 262: tokens from there to 261"),
    ("vision_config.architecture", "mobilenetv5_base", "'mobilenetv5_base': Gemma 3n's tower is timm's"),
    ("vision_config.hidden_size", 1024, "the tower gives 2048 numbers"),
    ("vision_config.do_pooling", True, "features of every place"),
    ("vision_config.model_args.msfa_output_resolution", [4, 4], "one number for both sides"),
    ("vision_config.model_args.channel_multiplier", 0.5, "model_args channel_multiplier: built are block_args"),
    ("vision_config.model_args.block_args", [], "0 stages; built are four"),
    ("vision_soft_tokens_per_image", 16, "the tower gives 3 x 3 features"),
]


@pytest.mark.parametrize(("path", "value", "said"), REFUSED, ids=[f"{path}={value}" for path, value, _ in REFUSED])
def test_a_config_that_is_not_built_is_refused_by_name(
    path: str, value: Any, said: str, families: dict[str, ModuleType]
) -> None:
    with pytest.raises(UnsupportedConfigError, match=said):
        load_family(_changed(families["gemma3n"].config(), path, value))


@pytest.mark.parametrize(
    ("stage", "at", "changes", "said"),
    [
        (0, 0, {"block_type": "cn"}, "block_type 'cn'; built are er, uir, mqa"),
        (0, 1, {"se_ratio": 0.25}, "se_ratio of a block of type er is not built"),
        (1, 0, {"dw_kernel_size_end": 3}, "dw_kernel_size_end of a block of type uir"),
        (1, 1, {"stride": 2}, "the first block of each, a convolution, halves"),
        (2, 2, {"value_dim": 8}, "heads of one size"),
        (2, 2, {"query_strides": 2}, "query_strides of a block of type mqa"),
    ],
)
def test_a_block_that_is_not_built_is_refused_by_name(
    stage: int, at: int, changes: dict[str, Any], said: str, families: dict[str, ModuleType]
) -> None:
    config = copy.deepcopy(families["gemma3n"].config())
    config["vision_config"]["model_args"]["block_args"][stage][at] |= changes
    with pytest.raises(UnsupportedConfigError, match=said):
        load_family(config)


def test_a_processor_of_other_images_is_refused(families: dict[str, ModuleType], sample_of: Any) -> None:
    family = load_family(families["gemma3n"].config())
    assert isinstance(family, VisionLanguage)
    family.stated_images = {"size": {"height": 80, "width": 80}}
    with pytest.raises(UnsupportedConfigError, match=r"images of 80 pixels a side; .* multiples of 48 and 32"):
        _ = family.image_size_px
    family.stated_images = {"size": {"height": 192, "width": 192}}
    spec = ImageSpec.read(sample_of("gemma3n", 0).bundle().path(PREPROCESSOR))
    family.check_images(spec.model_copy(update={"geometry": Fixed(height_px=192, width_px=192)}))
    with pytest.raises(UnsupportedConfigError, match=r"makes images of \(96, 96\) pixels"):
        family.check_images(spec)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"segments": [1]}, "per_layer_inputs"),
        ({"task_vectors": True}, "--task-vectors"),
        ({"length_groups": 2}, "--length-groups .* layers 3, 4 read those of other layers"),
        ({"skip_visual": [1]}, "--skip-visual: layer 1 of the decoder does not end with a feed-forward"),
    ],
)
def test_what_reads_hidden_states_or_rows_by_layer_is_refused(
    changes: dict[str, Any], said: str, sample_of: Any, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedConfigError, match=said):
        export_checkpoint(sample_of("gemma3n", 0).checkpoint, tmp_path / "other", **changes)
