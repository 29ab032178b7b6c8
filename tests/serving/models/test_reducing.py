"""Requests that read fewer tokens of their images: answers, usage, prefixes, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from bundle.directory import Bundle, open_bundle
from bundle.errors import ContextLengthError, ParameterError, SettingsError
from bundle.frames.options import FrameOptions
from bundle.frames.table import LAYOUTS
from bundle.prompt import Placeholder, Turn
from export.exporter import export_checkpoint
from quant.visual_tokens.reduction import Reduction
from quant.visual_tokens.table import METHODS
from runtime.one_request import VisionLanguageRunner
from serving.models.generative import GenerativeModel
from serving.protocol import (
    GenerateRequest,
    ImagePart,
    Message,
    SamplingParams,
    TextPart,
    TokenizeRequest,
    VideoPart,
    VisionReduction,
)
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, intra_threads=1, prefill_chunk_tokens=48)
TOKENS = 16
"""Of a tile of the model."""
BY_LOT = ("random", "clustering")
"""They draw by what was encoded, which the runner of one request tells by another digest."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoints: ModuleType) -> Path:
    """A tiny model of 16 tokens a tile, on which a quarter still has something to choose."""
    base = tmp_path_factory.mktemp("reducing")
    config = checkpoints.smolvlm_config(text={"max_position_embeddings": 1024}, scale_factor=1)
    checkpoints.save_smolvlm(base / "checkpoint", config)
    export_checkpoint(base / "checkpoint", base / "tiny-smolvlm")
    return base / "tiny-smolvlm"


@pytest.fixture
def serve(folder: Path, pool):
    """The function that serves the model with changed settings until the test ends."""
    models = []

    def make(bundle: Bundle | None = None, **changes) -> GenerativeModel:
        models.append(GenerativeModel(bundle or open_bundle(folder), SETTINGS.model_copy(update=changes), pool))
        models[-1].start()
        return models[-1]

    yield make
    for model in models:
        model.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 120))


def asked(*parts: str | bytes | VideoPart, method: str | None = None, keep: float = 1, max_tokens: int = 8, **sampling):
    made = (TextPart(p) if isinstance(p, str) else ImagePart(p) if isinstance(p, bytes) else p for p in parts)
    vision = None if method is None else VisionReduction(method, keep)
    sampling = SamplingParams(max_tokens=max_tokens, **sampling)
    return GenerateRequest("r", "tiny-smolvlm", (Message("user", tuple(made)),), sampling, vision=vision)


@pytest.mark.parametrize("method", METHODS)
def test_all_tokens_are_the_request_that_says_nothing(serve, answer, image_bytes, method: str) -> None:
    model = serve()

    async def main() -> None:
        plain = await answer(model, asked(image_bytes(1), "what?"))
        whole = await answer(model, asked(image_bytes(1), "what?", method=method, keep=1))
        assert whole.token_ids == plain.token_ids
        first, second = plain.finished.usage, whole.finished.usage
        assert second.kept_image_tokens == second.image_tokens == first.image_tokens == first.kept_image_tokens
        assert second.prompt_tokens == first.prompt_tokens
        assert second.cached_image_tokens == second.image_tokens
        assert second.cached_tokens > second.image_tokens  # it is the same prompt

    run(main)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in BY_LOT])
def test_answers_are_those_of_one_request_alone(serve, answer, image_bytes, folder, method: str) -> None:
    """The same reduction through the engine, with its chunks and cache, and through the runner without a server."""
    model, runner, images = serve(), VisionLanguageRunner(open_bundle(folder)), [image_bytes(1), image_bytes(2, 33, 90)]
    decoded = [Image.open(BytesIO(data)).convert("RGB") for data in images]
    seen = runner.see(decoded, with_tower=True)
    turns = [Turn("user", (Placeholder.IMAGE, "Which is", Placeholder.IMAGE, " larger?"))]

    async def main() -> None:
        for keep in (0.25, 0.6):
            expected = runner.prefill(runner.prompt_about(turns, seen, Reduction(method, keep)), 24)
            reply = runner.reply_ids(expected, 24)
            found = await answer(
                model, asked(images[0], "Which is", images[1], " larger?", method=method, keep=keep, max_tokens=24)
            )
            assert [
                token for token in found.token_ids if token not in open_bundle(folder).manifest.eos_token_ids
            ] == reply
            assert found.finished.usage.prompt_tokens == expected.prompt.num_tokens

    run(main)


@pytest.mark.parametrize("method", METHODS)
def test_a_crowd_answers_as_each_does_alone(serve, answer, image_bytes, method: str) -> None:
    model, fresh = serve(), serve(prefix_cache=False, image_cache_bytes=0)
    requests = [
        asked(image_bytes(1), "one", method=method, keep=0.25, max_tokens=12),
        asked(image_bytes(1), "two", method=method, keep=0.5, max_tokens=9),
        asked(
            image_bytes(2), image_bytes(1), "three", method=method, keep=0.25, max_tokens=14, temperature=1.0, seed=5
        ),
        asked(image_bytes(1), "one", max_tokens=11),
        asked("four", max_tokens=3),
    ]

    async def main() -> None:
        alone = [await answer(fresh, request) for request in requests]
        together = await asyncio.gather(*(answer(model, request) for request in requests))
        again = await asyncio.gather(*(answer(model, request) for request in reversed(requests)))
        assert [each.token_ids for each in together] == [each.token_ids for each in alone]
        assert [each.token_ids for each in reversed(again)] == [each.token_ids for each in alone]

    run(main)


@pytest.mark.parametrize("method", METHODS)
def test_usage_tells_what_came_in_what_was_read_and_what_was_kept(serve, answer, image_bytes, method: str) -> None:
    model = serve()

    async def main() -> None:
        whole = (await answer(model, asked(image_bytes(3), "what?"))).finished.usage
        fewer = (await answer(model, asked(image_bytes(3), "what?", method=method, keep=0.3))).finished.usage
        again = (await answer(model, asked(image_bytes(3), "what?", method=method, keep=0.3))).finished.usage
        assert fewer.image_tokens == whole.image_tokens
        assert whole.image_tokens % TOKENS == 0
        assert fewer.kept_image_tokens == whole.image_tokens // TOKENS * 5
        assert whole.prompt_tokens - fewer.prompt_tokens == whole.image_tokens - fewer.kept_image_tokens
        # where the tower is asked, the image is encoded anew: a runtime may round otherwise then
        assert fewer.cached_image_tokens == (0 if METHODS[method].needs_tower else whole.image_tokens)
        assert again.cached_image_tokens == whole.image_tokens

    run(main)


def test_an_image_reduced_otherwise_and_another_image_are_no_prefix(serve, answer, image_bytes) -> None:
    model, fresh = serve(), serve(prefix_cache=False)
    text = "what is it? " * 2

    async def cached(request: GenerateRequest) -> int:
        found = await answer(model, request)
        assert found.token_ids == (await answer(fresh, request)).token_ids
        return found.finished.usage.cached_tokens

    async def main() -> None:
        image, most = image_bytes(1), 16  # of the words before the image
        assert await cached(asked(image, text, method="uniform", keep=0.5)) <= most
        same = await cached(asked(image, text, method="uniform", keep=0.5))
        assert same > 64
        others = [
            asked(image, text),
            asked(image, text, method="uniform", keep=0.25),
            asked(image, text, method="pooling", keep=0.5),
            asked(image, text, method="merging", keep=0.5),
            asked(image, text, method="visionzip", keep=0.5),
            asked(image_bytes(2), text, method="uniform", keep=0.5),
            asked(image_bytes(2), text),
        ]
        for other in others:
            assert await cached(other) <= most
            assert await cached(other) > 64

    run(main)


def test_the_next_turn_of_a_conversation_finds_what_was_read_of_the_image(serve, answer, image_bytes) -> None:
    model, vision = serve(), VisionReduction("dart", 0.5)

    def chat(*turns: str) -> GenerateRequest:
        messages = [Message(("user", "assistant")[number % 2], (TextPart(text),)) for number, text in enumerate(turns)]
        messages[0] = Message("user", (ImagePart(image_bytes(4)), *messages[0].parts))
        return GenerateRequest("r", "tiny-smolvlm", tuple(messages), SamplingParams(max_tokens=8), vision=vision)

    async def main() -> None:
        first = await answer(model, chat("what is it?"))
        second = await answer(model, chat("what is it?", "nothing", "and where is the longest of them all?"))
        assert second.finished.usage.cached_tokens > first.finished.usage.kept_image_tokens > 0

    run(main)


def test_a_prompt_that_fits_only_when_it_is_reduced_is_answered(serve, answer, image_bytes) -> None:
    model = serve(context_tokens=256)
    images = [image_bytes(seed) for seed in range(2)]  # 13 tiles of 16 tokens each, and their markers

    async def main() -> None:
        with pytest.raises(ContextLengthError, match="the 2 images take 416 tokens; the context holds 256"):
            await answer(model, asked(*images, "what?"))
        with pytest.raises(ContextLengthError, match="the 2 images take 312 tokens; the context holds 256"):
            await answer(model, asked(*images, "what?", method="uniform", keep=0.75))
        found = await answer(model, asked(*images, "what?", method="uniform", keep=0.1, max_tokens=4))
        assert found.finished.usage.kept_image_tokens == 2 * 13 * 2
        assert found.finished.usage.prompt_tokens < 256 < found.finished.usage.image_tokens
        with pytest.raises(ContextLengthError, match=r"\(52 of them for 2 images\); the context holds 256"):
            await answer(model, asked(*images, "what? " * 30, method="uniform", keep=0.1))

    run(main)


def test_positions_end_where_the_models_do(serve, answer, image_bytes) -> None:
    model = serve()
    images = [image_bytes(seed) for seed in range(3)]

    async def main() -> None:
        whole = (await answer(model, asked(*images, "x", max_tokens=1))).finished.usage
        spare = 1024 - whole.prompt_tokens
        words = "y" * (spare - 20)  # a token a byte
        found = await answer(
            model, asked(*images, "x" + words, method="uniform", keep=0.1, max_tokens=400, ignores_eos=True)
        )
        usage = found.finished.usage
        positions = usage.prompt_tokens + usage.image_tokens - usage.kept_image_tokens
        assert found.finished.reason == "length"
        assert positions + usage.completion_tokens == 1024
        with pytest.raises(ContextLengthError, match="positions, for image tokens that are left out keep their places"):
            await answer(model, asked(*images, "x" + "y" * spare, method="uniform", keep=0.1))

    run(main)


@pytest.mark.parametrize("method", ["uniform", "pooling", "dart"])
def test_tokens_are_counted_as_an_answer_would_read_them(serve, answer, image_bytes, method: str) -> None:
    model = serve(vision_method=method, vision_keep=0.25)
    images = image_bytes(1), image_bytes(2)

    async def main() -> None:
        for own in (None, VisionReduction("uniform", 0.6), VisionReduction("uniform", 1)):
            request = dataclasses.replace(asked(*images, "what?"), vision=own)
            told = await model.tokenize(TokenizeRequest("t", "tiny-smolvlm", request.messages, vision=own))
            assert len(told.token_ids) == (await answer(model, request)).finished.usage.prompt_tokens

    run(main)


def test_the_servers_default_is_for_requests_that_say_nothing(serve, answer, image_bytes) -> None:
    model = serve(vision_method="merging", vision_keep=0.25)

    async def main() -> None:
        by_default = (await answer(model, asked(image_bytes(1), "what?"))).finished.usage
        assert by_default.kept_image_tokens * 4 == by_default.image_tokens
        own = (await answer(model, asked(image_bytes(1), "what?", method="uniform", keep=0.5))).finished.usage
        assert own.kept_image_tokens * 2 == own.image_tokens
        whole = (await answer(model, asked(image_bytes(1), "what?", method="uniform", keep=1))).finished.usage
        assert whole.kept_image_tokens == whole.image_tokens
        text = (await answer(model, asked("what?"))).finished.usage
        assert (text.image_tokens, text.kept_image_tokens) == (0, 0)

    run(main)


@pytest.mark.parametrize(
    ("method", "keep", "param", "told"),
    [
        ("magic", 0.5, "vision.method", "it must be one of random, uniform"),
        ("magic", 1, "vision.method", "it must be one of random, uniform"),
        ("uniform", 0, "vision.keep", "above 0 and at most 1"),
        ("uniform", 2, "vision.keep", "above 0 and at most 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_decoded(
    serve, answer, method: str, keep: float, param: str, told: str
) -> None:
    model = serve()

    async def main() -> None:
        with pytest.raises(ParameterError, match=told) as refused:
            await answer(model, asked(b"no image", "what?", method=method, keep=keep))
        assert refused.value.param == param

    run(main)


def without_tower(folder: Path, base: Path) -> Bundle:
    """Return a bundle whose vision encoder tells nothing of its attention, as those of earlier versions."""
    import shutil

    import onnx_ir as ir

    from bundle.directory import seal
    from graphs.store import drop_unused, save_graph

    shutil.copytree(folder, base)
    manifest = open_bundle(base).manifest
    component = manifest.components["vision_encoder"]
    model = ir.load(base / component.file)
    for output in list(model.graph.outputs)[1:]:
        model.graph.outputs.remove(output)
    drop_unused(model)
    save_graph(model, base / component.file)
    components = {**manifest.components, "vision_encoder": component.model_copy(update={"optional_outputs": ()})}
    return seal(base, manifest.model_copy(update={"components": components}))


def test_a_method_whose_outputs_the_bundle_lacks_is_refused_by_name(
    serve, answer, image_bytes, folder, tmp_path, pool
) -> None:
    older = without_tower(folder, tmp_path / "older")
    model = serve(older)

    async def main() -> None:
        for method in ("visionzip", "fastervlm"):
            with pytest.raises(ParameterError, match=r"vision_encoder\.onnx does not give: take one of ") as refused:
                await answer(model, asked(image_bytes(1), "what?", method=method, keep=0.5))
            assert refused.value.param == "vision.method"
        found = await answer(model, asked(image_bytes(1), "what?", method="dart", keep=0.5))
        assert found.finished.usage.kept_image_tokens * 2 == found.finished.usage.image_tokens

    run(main)
    settings = SETTINGS.model_copy(update={"vision_method": "fastervlm", "vision_keep": 0.5})
    with pytest.raises(SettingsError, match="what requests get by default"):
        GenerativeModel(older, settings, pool)


def test_a_default_that_is_unknown_is_told_at_the_start(folder, pool) -> None:
    settings = SETTINGS.model_copy(update={"vision_method": "magic"})
    with pytest.raises(SettingsError, match="'magic' is unknown"):
        GenerativeModel(open_bundle(folder), settings, pool)


@pytest.mark.parametrize("method", ["dart", "pooling", "visionzip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_are_reduced_one_by_one_in_every_layout(serve, answer, image_bytes, layout: str, method: str) -> None:
    model = serve()
    frames = tuple(image_bytes(seed, 64, 64) for seed in range(5))
    video = VideoPart(frames, FrameOptions(list_fps=1.0, layout=layout))

    async def main() -> None:
        whole = (await answer(model, asked(video, "what?"))).finished.usage
        request = asked(video, "what?", image_bytes(9), method=method, keep=0.5)
        first, again = await answer(model, request), await answer(model, request)
        assert first.token_ids == again.token_ids
        usage = first.finished.usage
        shown = usage.image_tokens - 13 * TOKENS
        assert shown >= whole.image_tokens
        assert 0 <= 2 * (usage.kept_image_tokens - 13 * TOKENS // 2) - shown <= 5
        assert again.finished.usage.cached_image_tokens == usage.image_tokens

    run(main)


def test_a_video_that_fits_only_when_it_is_reduced_is_answered(serve, answer, image_bytes) -> None:
    model = serve(context_tokens=160)
    video = VideoPart(tuple(image_bytes(seed, 64, 64) for seed in range(20)), FrameOptions(list_fps=1.0))

    async def main() -> None:
        with pytest.raises(
            ContextLengthError, match="20 frames take 320 tokens in the layout uniform; the context holds 160"
        ):
            await answer(model, asked(video, "what?"))
        with pytest.raises(ContextLengthError, match="the context holds 177 of which a part is read"):
            await answer(model, asked(video, "what?", method="uniform", keep=0.9))
        usage = (await answer(model, asked(video, "what?", method="uniform", keep=0.05, max_tokens=2))).finished.usage
        assert (usage.image_tokens, usage.kept_image_tokens) == (320, 20)

    run(main)


def test_several_choices_read_the_same_reduced_prompt(serve, answer, image_bytes) -> None:
    model = serve()
    request = dataclasses.replace(asked(image_bytes(1), "what?", method="dart", keep=0.25), num_choices=3)

    async def main() -> None:
        usage = (await answer(model, request)).finished.usage
        assert usage.kept_image_tokens * 4 == usage.image_tokens

    run(main)
