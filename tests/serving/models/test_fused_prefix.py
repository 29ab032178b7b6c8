"""Fused prefixes through a whole model: what text alone leaves is the text; images are read once and not again."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from bundle.directory import open_bundle
from bundle.errors import ContextLengthError, ParameterError
from bundle.image import TileLayout
from bundle.prompt import Placeholder, Turn
from runtime.cache_shape import cache_shape
from runtime.decoder import Decoder, TokenGraphs
from runtime.fused_prefix import FusedPrefix, text_rows
from runtime.one_request import VisionLanguageRunner
from serving.models.generative import GenerativeModel
from serving.protocol import (
    GenerateRequest,
    ImagePart,
    KVCompression,
    Message,
    SamplingParams,
    TextPart,
    Tool,
    VisionReduction,
)
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=2, intra_threads=1, prefill_chunk_tokens=32)
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignores_eos=True)


@pytest.fixture
def model(smolvlm_bundle: Path, pool):
    model = GenerativeModel(open_bundle(smolvlm_bundle), SETTINGS, pool)
    model.start()
    yield model
    model.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def message(role: str, *parts: str | bytes) -> Message:
    return Message(role, tuple(TextPart(part) if isinstance(part, str) else ImagePart(part) for part in parts))


def request(*messages: Message, **fields) -> GenerateRequest:
    return GenerateRequest("r", "tiny-smolvlm", messages, GREEDY, **fields)


async def fused(model: GenerativeModel, answer, *messages: Message, **fields) -> bytes:
    """Return a prefix whose rows lie in no slot any more."""
    found = (await answer(model, request(*messages, fuses=True, **fields))).finished.fused
    assert found is not None
    model.clear_prefixes()
    await answer(model, request(message("user", "Something else. " * 10)))
    return found


def test_behind_a_text_that_was_fused_is_behind_the_text(model, answer) -> None:
    shown = message("user", "What is grass?"), message("assistant", "green")
    own = message("user", "What is snow?")

    async def main() -> None:
        prefix = await fused(model, answer, *shown)
        plain, behind = await answer(model, request(*shown, own)), await answer(model, request(own, behind=prefix))
        assert behind.token_ids == plain.token_ids
        assert behind.finished.usage.prompt_tokens == plain.finished.usage.prompt_tokens

    run(main)


def test_a_prefix_keeps_the_sizes_that_its_images_tokens_depend_on(model, answer, smolvlm_bundle) -> None:
    manifest = open_bundle(smolvlm_bundle).manifest
    layouts = (TileLayout(whole_px=(28, 56)), TileLayout(2, 3, image_px=(90, 120)), TileLayout(fewer_tokens=5))

    async def main() -> None:
        prefix = FusedPrefix.from_bytes(await fused(model, answer, message("user", "What is grass?")), manifest)
        sized = dataclasses.replace(prefix, layouts=layouts)
        assert FusedPrefix.from_bytes(sized.to_bytes(), manifest).layouts == layouts

    run(main)


def test_images_of_a_fused_prefix_are_seen_by_its_text_alone(model, answer, smolvlm_bundle, image_bytes) -> None:
    from io import BytesIO

    from PIL import Image

    files = [image_bytes(seed) for seed in (1, 2)]
    shown = message("user", files[0], "What is it?"), message("assistant", "a cat")
    own = message("user", files[1], "What is it?")
    images = [Image.open(BytesIO(file)).convert("RGB") for file in files]
    turns = [
        Turn("user", (Placeholder.IMAGE, "What is it?")),
        Turn("assistant", ("a cat",)),
        Turn("user", (Placeholder.IMAGE, "What is it?")),
    ]

    async def main() -> None:
        prefix = await fused(model, answer, *shown)
        found = await answer(model, request(own, behind=prefix))
        usage = found.finished.usage
        made = FusedPrefix.from_bytes(prefix, model._manifest)
        whole = VisionLanguageRunner(open_bundle(smolvlm_bundle), SETTINGS).prompt(turns, images)
        end, num_tokens = len(made.token_ids), whole.num_tokens
        text = text_rows(whole.prompt)
        kept = text[text < end]
        assert usage.cached_tokens == made.rows.num_rows == len(kept) < end
        assert usage.prompt_tokens == num_tokens - (end - len(kept)) == usage.cache_rows_after
        assert usage.image_tokens == whole.prompt.num_image_tokens / 2
        bundle = open_bundle(smolvlm_bundle)
        decoder = Decoder(TokenGraphs(bundle, SETTINGS), cache_shape(bundle.manifest, 1, num_tokens + 8))
        decoder.run("prompt", 0, [whole.run(0, end, [0], [end - 1])])
        decoder.states.keep(0, 0, kept)
        logits = decoder.run("prompt", 0, [whole.run(end, num_tokens, [len(kept)], [num_tokens - end - 1])])[0, 0]
        assert found.token_ids[0] == int(np.argmax(logits))
        without = await answer(model, request(own))
        assert without.token_ids != found.token_ids

    run(main)


def test_a_fused_prefix_leaves_nothing_that_plain_requests_find(model, answer, image_bytes) -> None:
    shown = message("user", image_bytes(5), "What is it?"), message("assistant", "noise")
    own = message("user", "And " + "why " * 20)

    async def main() -> None:
        prefix = await fused(model, answer, *shown)
        plain = await answer(model, request(*shown, own))
        model.clear_prefixes()
        again = await answer(model, request(own, behind=prefix))
        for _ in range(2):
            assert (await answer(model, request(own, behind=prefix))).token_ids == again.token_ids
        after = await answer(model, request(*shown, own))
        assert after.token_ids == plain.token_ids
        assert after.finished.usage.cached_tokens == 0

    run(main)


def test_reduced_images_of_a_prefix_leave_another_one(model, answer, image_bytes) -> None:
    shown = message("user", image_bytes(5), "What is it?"), message("assistant", "noise")

    async def main() -> None:
        whole = FusedPrefix.from_bytes(await fused(model, answer, *shown), model._manifest)
        reduction = VisionReduction("uniform", 0.25)
        fewer = FusedPrefix.from_bytes(await fused(model, answer, *shown, vision=reduction), model._manifest)
        assert whole.rows.num_rows == fewer.rows.num_rows
        assert np.array_equal(whole.token_ids, fewer.token_ids)
        assert not all(np.array_equal(array, fewer.rows.of_state[name]) for name, array in whole.rows.of_state.items())

    run(main)


def test_what_cannot_be_is_refused_by_name(model, answer, smolvlm_bundle, image_bytes) -> None:
    shown = message("user", image_bytes(5), "What is it?"), message("assistant", "noise")
    own = message("user", "Why?")

    async def refused(asked: GenerateRequest, told: str, error: type[Exception] = ParameterError) -> None:
        with pytest.raises(error, match=told):
            await answer(model, asked)

    async def main() -> None:
        prefix = await fused(model, answer, *shown)
        await refused(request(own, behind=prefix[: len(prefix) // 2]), "damaged; delete it and make it again")
        await refused(request(own, behind=b"no file"), "damaged")
        await refused(request(own, behind=prefix, kv=KVCompression("knorm", 0.5)), "send kv with budget 1")
        await refused(request(*shown, fuses=True, kv=KVCompression("knorm", 0.5)), "send kv with budget 1")
        tool = Tool("look", "Look.", '{"type": "object", "properties": {}}')
        await refused(request(own, behind=prefix, tools=(tool,)), "does not begin with the tokens of its fused prefix")
        long = message("user", "why " * 300)
        await refused(request(long, behind=prefix), "the prompt takes", ContextLengthError)
        other = FusedPrefix.from_bytes(prefix, model._manifest)
        moved = dataclasses.replace(other, identity="other").to_bytes()
        await refused(request(own, behind=moved), "made with another bundle than the tiny-smolvlm")
        rows = dataclasses.replace(other.rows, of_state=dict(list(other.rows.of_state.items())[1:]))
        await refused(request(own, behind=dataclasses.replace(other, rows=rows).to_bytes()), "holds other rows")

    run(main)
