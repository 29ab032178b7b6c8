"""Models whose prompts are how answers begin: served in pieces, side by side, and behind rows that are here."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.directory import Bundle
from bundle.prompt import Placeholder, Turn
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
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

LONG = "longer than a run of sixteen tokens is this text"
Asked = tuple[Image.Image, str]


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8))


def alone(bundle: Bundle, asked: Asked) -> list[int]:
    runner = VisionLanguageRunner(bundle, RuntimeSettings(intra_threads=1))
    image, text = asked
    prompt = runner.prompt([Turn("user", (Placeholder.IMAGE, text))], [image])
    return runner.reply_ids(runner.prefill(prompt, 8), 8)


async def answers(
    bundle: Bundle, asked: list[Asked], *, at_once: bool, **more: Any
) -> list[list[tuple[list[int], int]]]:
    """Return of each request what each of its choices says, and how much of its prompt was there."""
    settings = EngineSettings(max_sequences=4, intra_threads=1, prefill_chunk_tokens=16)
    pool = PreprocessPool(settings)
    model = GenerativeModel(bundle, settings, pool)
    model.start()
    try:
        if at_once:
            return list(await asyncio.gather(*(_answer(model, each, more) for each in asked)))
        return [await _answer(model, each, more) for each in asked]
    finally:
        model.close()
        pool.close()


async def _answer(model: GenerativeModel, asked: Asked, more: dict[str, Any]) -> list[tuple[list[int], int]]:
    file = BytesIO()
    asked[0].save(file, "PNG")
    message = Message("user", (ImagePart(file.getvalue()), TextPart(asked[1])))
    sampling = SamplingParams(max_tokens=8, temperature=0.0)
    request = GenerateRequest("r", "tiny", (message,), sampling, **more)
    events = [event async for event in model.generate(request)]
    last = events[-1]
    assert isinstance(last, FinishedEvent)
    said = [
        [token for event in events[:-1] if event.index == index for token in event.token_ids]
        for index in range(request.num_choices)
    ]
    return [(each, last.usage.cached_tokens) for each in said]


@pytest.mark.parametrize("family", ["donut", "blip", "unival", "git"])
def test_prompts_in_pieces_and_side_by_side_are_answered_as_alone(family: str, sample_of: Any) -> None:
    bundle = sample_of(family, 0).bundle()
    asked = [(picture(1), LONG), (picture(2), "short"), (picture(1), f"{LONG} too"), (picture(1), LONG)]
    wanted = [alone(bundle, each) for each in asked]
    for found in (
        asyncio.run(answers(bundle, asked, at_once=True)),
        asyncio.run(answers(bundle, asked, at_once=False)),
    ):
        assert [_said(bundle, each[0][0]) for each in found] == wanted
    assert len({tuple(each) for each in wanted}) > 1
    ((first, _), (second, _)) = asyncio.run(answers(bundle, asked[:1], at_once=True, num_choices=2))[0]
    assert _said(bundle, first) == _said(bundle, second) == wanted[0]


def _said(bundle: Bundle, tokens: list[int]) -> list[int]:
    return [token for token in tokens if token not in bundle.manifest.eos_token_ids]


def test_rows_of_an_image_serve_another_text_behind_it(sample_of: Any) -> None:
    """Places of a text do not depend on how many rows stand before it; rows that are here end on a grid of 16."""
    bundle = sample_of("git", 0).bundle()
    asked = [(picture(1), LONG), (picture(1), "another"), (picture(2), LONG)]
    (_, first), (_, second), (_, third) = (each[0] for each in asyncio.run(answers(bundle, asked, at_once=False)))
    assert first == third == 0
    assert second == 16


def test_rows_are_chosen_where_places_are_not_those_of_rows(sample_of: Any) -> None:
    bundle = sample_of("git", 0).bundle()
    kv = KVCompression("snapkv", 0.5)
    asked = [(picture(1), LONG)] * 2
    (first,), (second,) = asyncio.run(answers(bundle, asked, at_once=False, kv=kv))
    assert first[0] == second[0]
