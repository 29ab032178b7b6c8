"""What earlier requests left: who finds it, what it changes, and how it is forgotten."""

import asyncio
import dataclasses
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import ContextLengthError, DeadlineError, SettingsError
from serving.models.client import LocalClient
from serving.models.generative import GenerativeModel
from serving.protocol import GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, intra_threads=1, prefill_chunk_tokens=48)
TOKEN_BYTES = 3 * 2 * 2 * 8 * 4
"""Of a row of the tiny model: layers, keys and values, heads, numbers, bytes."""


@pytest.fixture
def serve(smolvlm_bundle, pool):
    """The function that serves the tiny model with changed settings until the test ends."""
    models = []

    def make(**changes) -> GenerativeModel:
        models.append(GenerativeModel(open_bundle(smolvlm_bundle), SETTINGS.model_copy(update=changes), pool))
        models[-1].start()
        return models[-1]

    yield make
    for model in models:
        model.close()


def chat(*turns: str, image: bytes | None = None, max_tokens: int = 8, **changes) -> GenerateRequest:
    """Return a conversation; user and assistant take turns, and the image is in the first message."""
    messages = [Message(("user", "assistant")[number % 2], (TextPart(text),)) for number, text in enumerate(turns)]
    if image is not None:
        messages[0] = Message("user", (ImagePart(image), *messages[0].parts))
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return GenerateRequest("r", "tiny-smolvlm", tuple(messages), sampling, **changes)


def with_one_pixel_changed(image: bytes) -> bytes:
    pixels = np.asarray(Image.open(BytesIO(image))).copy()
    pixels[7, 9, 1] ^= 1
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def run(main) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_conversation_over_one_image_encodes_and_reads_only_what_is_new(serve, answer, image_bytes) -> None:
    model, fresh, image = serve(), serve(prefix_cache=False), image_bytes(1)

    async def main() -> None:
        first = await answer(model, chat("what is it?", image=image))
        usage = first.finished.usage
        assert (usage.cached_tokens, usage.cached_image_tokens) == (0, 0)
        turn = chat("what is it?", first.text, "and what else?", image=image)
        second = await answer(model, turn)
        assert second.finished.usage.cached_image_tokens == usage.image_tokens > 0
        # All of the first prompt but the turn to the assistant, which its template may write otherwise.
        assert second.finished.usage.cached_tokens > usage.image_tokens + len("what is it?")
        assert second.token_ids == (await answer(fresh, turn)).token_ids
        gauges = model.gauges
        asked = usage.prompt_tokens + second.finished.usage.prompt_tokens
        assert (gauges["prefix_cache_queries"], gauges["prefix_cache_hits"]) == (
            asked,
            second.finished.usage.cached_tokens,
        )
        assert gauges["prefix_cache_bytes"] >= second.finished.usage.prompt_tokens * TOKEN_BYTES
        assert fresh.gauges["prefix_cache_hits"] == fresh.gauges["prefix_cache_bytes"] == 0

    run(main)


def test_one_pixel_that_changed_is_another_image(serve, answer, image_bytes) -> None:
    model, image = serve(), image_bytes(1)

    async def main() -> None:
        same = chat("what is it?", image=image)
        usage = (await answer(model, same)).finished.usage
        found = (await answer(model, same)).finished.usage.cached_tokens
        assert usage.prompt_tokens - 18 < found <= usage.prompt_tokens - 2
        assert found % 16 == 0
        changed = await answer(model, chat("what is it?", image=with_one_pixel_changed(image)))
        assert changed.finished.usage.cached_tokens < usage.prompt_tokens - usage.image_tokens
        assert changed.finished.usage.cached_image_tokens == 0

    run(main)


def test_a_crowd_answers_the_same_with_and_without_what_was_kept_and_under_pressure(serve, answer, image_bytes) -> None:
    requests = [
        chat(f"what is {number % 3}?", image=image_bytes(number % 2), max_tokens=50 + number) for number in range(9)
    ]
    models = [
        serve(prefix_cache=False),
        serve(),
        serve(prefill_chunk_tokens=17, max_gap_ms=1e-3),
        serve(kv_memory_bytes=256 * TOKEN_BYTES),
    ]

    async def main() -> None:
        answers = []
        for model in models:
            together = await asyncio.gather(*(answer(model, request) for request in requests))
            answers.append([each.token_ids for each in together])
        assert answers[1:] == answers[:1] * 3
        assert models[1].gauges["prefix_cache_hits"] > 0
        assert models[3].gauges["num_preemptions"] > 0

    run(main)


def test_a_prompt_that_memory_can_never_hold_is_refused_by_its_limit(serve, answer) -> None:
    model = serve(kv_memory_bytes=50 * TOKEN_BYTES)
    assert model.card.context_tokens == 50

    async def main() -> None:
        with pytest.raises(ContextLengthError, match="holds 50, all that kv_memory_bytes has room for"):
            await answer(model, chat("x" * 60))

    run(main)


def test_a_context_that_memory_cannot_hold_is_refused_at_start(smolvlm_bundle, pool) -> None:
    settings = SETTINGS.model_copy(update={"context_tokens": 100, "kv_memory_bytes": 50 * TOKEN_BYTES})
    with pytest.raises(SettingsError, match=f"context_tokens 100 takes {100 * TOKEN_BYTES} bytes.*holds 50 tokens"):
        GenerativeModel(open_bundle(smolvlm_bundle), settings, pool)


def test_a_request_whose_time_is_over_while_it_waits_is_not_begun(serve, answer) -> None:
    model = serve(max_sequences=1)

    async def main() -> None:
        running = asyncio.create_task(answer(model, chat("go on", max_tokens=200)))
        while not model.gauges["num_requests_running"]:
            await asyncio.sleep(0.001)
        with pytest.raises(DeadlineError, match=r"waited \d.* s for a slot"):
            await answer(model, chat("too late", timeout_s=0.0))
        await running
        await answer(model, chat("in time", timeout_s=50.0))

    run(main)


def test_what_was_kept_can_be_forgotten(smolvlm_bundle, answer, image_bytes) -> None:
    async def main() -> None:
        async with LocalClient([smolvlm_bundle], SETTINGS) as client:
            asked = chat("what is it?", image=image_bytes(1))
            new = await answer(client, asked)
            assert (await answer(client, asked)).finished.usage.cached_tokens > 0
            client.clear_caches()
            again = await answer(client, asked)
            assert again.token_ids == new.token_ids
            assert (
                again.finished.usage == new.finished.usage == dataclasses.replace(new.finished.usage, cached_tokens=0)
            )

    run(main)
