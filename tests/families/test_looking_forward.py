"""Attention that looks forward: served in pieces, from rows that are here, with caches of codes, refused by name."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from bundle import tensors
from bundle.directory import Bundle, open_bundle
from bundle.errors import ParameterError, PromptError, QuantizationError, SettingsError, UnsupportedConfigError
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.exporter import export_checkpoint
from graphs.causal import looks_ahead
from graphs.lowering.decoder import lower_decoder
from graphs.store import CONTRIB, open_graph, save_graph
from quant.kv.needs import missing
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from quant.samples.built_in import built_in_samples
from runtime.decoder import TokenGraphs
from runtime.feeds import Step, TokenRun, feeds_of
from runtime.limits import Limits
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from runtime.states import empty_states
from runtime.tensorrt.profiles import profiles_of
from serving.models.fusing import Fusing
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import (
    FinishedEvent,
    GenerateRequest,
    ImagePart,
    KVCompression,
    Message,
    SamplingParams,
    TextPart,
)
from serving.settings import EngineSettings

SETTINGS = RuntimeSettings(intra_threads=1)
LOOKING = ("aki", "gemma3", "molmo2", "paligemma")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8))


@pytest.fixture(params=LOOKING)
def bundle(request: pytest.FixtureRequest, sample_of: Any) -> Bundle:
    return sample_of(request.param, 0).bundle()


def test_prompts_in_pieces_and_behind_rows_that_are_here_are_answered_as_alone(bundle: Bundle) -> None:
    """The second image stands behind more tokens than run at once; 32 of a run are fewer than it takes with words."""
    shown, other = picture(1), picture(2)
    asked = [
        (shown, "What stands here, and what does not?", other, "Tell me."),
        (shown, "What stands here, and what does not?", other, "Tell him instead."),
        (shown, "What stands here, and what does not?", other, "Tell me."),
        (shown, "What stands here, and what does not?", shown, "Tell me."),
    ]
    runner = VisionLanguageRunner(bundle, SETTINGS)
    cached = []
    for parts, (tokens, num_cached) in zip(asked, asyncio.run(_served(bundle, asked)), strict=True):
        turn = Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))
        images = [part for part in parts if not isinstance(part, str)]
        alone = runner.reply_ids(runner.prefill(runner.prompt([turn], images), 8), 8)
        assert [token for token in tokens if token not in bundle.manifest.eos_token_ids] == alone
        cached.append(num_cached)
    if bundle.manifest.model_type == "gemma3":
        assert cached[0] == 0 < cached[3] < cached[1] <= cached[2]
    elif bundle.manifest.model_type == "molmo2":  # the text behind both images is seen by neither
        assert cached[0] == cached[3] == 0 < cached[1] <= cached[2]
    else:
        assert cached[0] == cached[1] == cached[3] == 0 < cached[2]


@pytest.mark.parametrize("bundle", ["paligemma"], indirect=True)
def test_rows_are_chosen_of_a_prompt_that_sees_itself_alike_however_it_was_read(bundle: Bundle) -> None:
    asked = (picture(1), "caption en, in as many words as there are here, and in no more")
    kv = KVCompression("snapkv", 0.5)
    first, second, whole = asyncio.run(_served(bundle, [asked] * 2, kv)) + asyncio.run(_served(bundle, [asked]))
    assert first[1] == 0 < second[1]
    assert first[0] == second[0] != whole[0]


async def _served(
    bundle: Bundle, asked: list[tuple[str | Image.Image, ...]], kv: KVCompression | None = None
) -> list[tuple[list[int], int]]:
    """Return what each said, one after another, and how much of its prompt was there."""
    settings = EngineSettings(max_sequences=2, intra_threads=1, prefill_chunk_tokens=32)
    pool = PreprocessPool(settings)
    model = GenerativeModel(bundle, settings, pool)
    model.start()
    try:
        return [await _answer(model, parts, kv) for parts in asked]
    finally:
        model.close()
        pool.close()


async def _answer(
    model: GenerativeModel, parts: tuple[str | Image.Image, ...], kv: KVCompression | None
) -> tuple[list[int], int]:
    content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(_png(part)) for part in parts)
    sampling = SamplingParams(max_tokens=8, temperature=0.0)
    request = GenerateRequest("r", "tiny", (Message("user", content),), sampling, kv=kv)
    events = [event async for event in model.generate(request)]
    assert isinstance(events[-1], FinishedEvent)
    return [token for event in events[:-1] for token in event.token_ids], events[-1].usage.cached_tokens


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("family", "number"), [("gemma3", 0), ("paligemma", 1)])
def test_a_graph_for_steps_masks_by_itself_and_says_the_same(
    family: str, number: int, sample_of: Any, tmp_path: Path
) -> None:
    """Windows of both samples are shorter than the rows that are here."""
    bundle = sample_of(family, number).bundle()
    graphs = TokenGraphs(bundle, SETTINGS)
    rng, num_rows = np.random.default_rng(0), 40
    lengths = [num_rows]
    run = TokenRun(np.array([7]), np.array([num_rows]), lengths, [0])
    states = {
        name: rng.standard_normal(array.shape, np.float32)
        for name, array in empty_states(bundle.manifest.states, 1, num_rows + 1).items()
    }
    component = bundle.manifest.components["decoder"]
    feeds = {**feeds_of(component.inputs, Step.of([run], graphs.embed(run.ids[None]))), **states}
    model = open_graph(bundle.graph_path("decoder"))
    attentions = _attentions(model)
    assert all(map(looks_ahead, attentions))
    lower_decoder(model, 512, "step")
    assert not any(map(looks_ahead, _attentions(model)))
    assert any("local_window_size" in node.attributes for node in _attentions(model))
    save_graph(model, tmp_path / "step.onnx")
    found, wanted = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run([tensors.LOGITS], feeds)[0]
        for path in (tmp_path / "step.onnx", bundle.graph_path("decoder"))
    )
    assert_allclose(found, wanted, atol=1e-4)


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if (node.domain, node.op_type) == (CONTRIB, "GroupQueryAttention")]


@pytest.mark.parametrize("bundle", ["gemma3", "molmo2", "paligemma"], indirect=True)
def test_a_cache_of_codes_sees_as_far(bundle: Bundle, tmp_path: Path) -> None:
    """Codes of 8 bits lose little; a causal mask in the place of the model's own would lose most."""
    samples = built_in_samples(bundle, "calibration")
    options = Options(kv_cache="int8")
    quantize_bundle(bundle.directory, tmp_path / "made", weights="fp32", options=options, calibration=samples)
    made = VisionLanguageRunner(open_bundle(tmp_path / "made", allow_ungated=True), SETTINGS)
    whole = VisionLanguageRunner(bundle, SETTINGS)
    turns, images = [Turn("user", (Placeholder.IMAGE, "What is in it?"))], [picture(3)]
    prompts = [each.prompt(turns, images) for each in (whole, made)]
    answer = whole.reply_ids(whole.prefill(prompts[0], 12), 12)
    expected, found = whole.answer_logits(prompts[0], answer), made.answer_logits(prompts[1], answer)
    for at in range(len(answer)):
        assert np.corrcoef(expected[at], found[at])[0, 1] > 0.98


def test_what_cannot_be_with_it_is_refused_by_name(bundle: Bundle, sample_of: Any, tmp_path: Path) -> None:
    manifest, family = bundle.manifest, bundle.manifest.model_type
    with pytest.raises(UnsupportedConfigError, match="seen_around"):
        export_checkpoint(sample_of(family, 0).checkpoint, tmp_path / "cut", segments=[1])
    if family != "gemma3":
        with pytest.raises(UnsupportedConfigError, match="--task-vectors"):
            export_checkpoint(sample_of(family, 0).checkpoint, tmp_path / "heads", task_vectors=True)
    with pytest.raises(QuantizationError, match="--target cuda: attention of tiny looks forward"):
        quantize_bundle(bundle.directory, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    with pytest.raises(SettingsError, match="an engine has a longest run"):
        profiles_of(manifest, manifest.components["decoder"], Limits(64, 1, 32, 1))
    request = GenerateRequest("r", "tiny", (Message("user", (TextPart("x"),)),), SamplingParams(), fuses=True)
    with pytest.raises(
        ParameterError, match="windows of 6 rows" if family == "gemma3" else "what follows them to its end"
    ):
        Fusing(manifest, "cpu").check(request, None, None)
    assert ("windows of 6 rows" in missing("knorm", manifest)) == (family == "gemma3")


def test_a_prompt_without_roles_takes_one_message(sample_of: Any) -> None:
    builder = PromptBuilder.from_bundle(sample_of("paligemma", 0).bundle())
    asked = Turn("user", ("caption en",))
    for turns in ([Turn("system", ("x",)), asked], [asked, Turn("assistant", ("x",)), asked]):
        with pytest.raises(PromptError, match="one message of the role user"):
            builder.build(turns, [])
