"""Prompts that are read in pieces, several at once: models whose images are rows of tokens with others between them."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from bundle.prompt import Placeholder, Turn
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

Parts = list[str | Image.Image]
SETTINGS = RuntimeSettings(intra_threads=1)


@pytest.mark.parametrize(
    "family",
    [
        "mistral3",
        "lighton_ocr",
        "hunyuan_vl",
        "pixtral",
        "solo",
        "eve",
        "deepseek_ocr",
        "deepseek_ocr2",
        "unlimited_ocr",
        "minicpm_ocr",
        "dots_ocr",
        "deepseek_vl2",
        "gemma3n",
    ],
)
def test_prompts_in_pieces_say_what_whole_ones_say(
    family: str, sample_of: Any, conversations: dict[str, Parts]
) -> None:
    """Pieces end within rows of images; one image stands twice in a prompt, and the prefix cache knows it again."""
    bundle = sample_of(family, 0).bundle()
    runner = VisionLanguageRunner(bundle, SETTINGS)
    tall, large = (part for part in conversations["two images"] if isinstance(part, Image.Image))
    asked: list[Parts] = [[tall, "and ", large, "and ", tall, "?"], ["Only words, but more than one piece holds."]]
    asked = [*asked, asked[0], [large, "and ", tall, "and ", large, "?"]]

    async def main() -> list[list[int]]:
        settings = EngineSettings(max_sequences=3, intra_threads=1, prefill_chunk_tokens=32)
        pool = PreprocessPool(settings)
        model = GenerativeModel(bundle, settings, pool)
        model.start()
        try:
            return await asyncio.gather(*(_said(model, parts) for parts in asked))
        finally:
            model.close()
            pool.close()

    for parts, tokens in zip(asked, asyncio.run(main()), strict=True):
        images = [part for part in parts if isinstance(part, Image.Image)]
        prompt = runner.prompt(_turns(parts), images)
        assert prompt.num_tokens > 32
        said = [token for token in tokens if token not in bundle.manifest.eos_token_ids]
        assert said == runner.reply_ids(runner.prefill(prompt, 12), 12)


def _turns(parts: Parts) -> list[Any]:
    return [Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))]


async def _said(model: GenerativeModel, parts: Parts) -> list[int]:
    content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(_png(part)) for part in parts)
    request = GenerateRequest("r", "tiny", (Message("user", content),), SamplingParams(max_tokens=12, temperature=0.0))
    events = [event async for event in model.generate(request)]
    assert isinstance(events[-1], FinishedEvent)
    return [token for event in events[:-1] for token in event.token_ids]


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
