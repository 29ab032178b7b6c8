"""An image that a model sees otherwise among others is never answered for by what it was when it was alone."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Any

from PIL import Image

from bundle.prompt import Placeholder, Turn
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

NUM_TOKENS = 8


def test_an_image_served_alone_is_encoded_anew_among_others(sample_of: Any, conversations: dict[str, Any]) -> None:
    bundle = sample_of("llava_onevision", 0).bundle()
    runner = VisionLanguageRunner(bundle, RuntimeSettings(intra_threads=1))
    (image,) = (part for part in conversations["one image"] if isinstance(part, Image.Image))
    asked = [[image], [image, image], [image]]

    async def main() -> list[list[int]]:
        settings = EngineSettings(max_sequences=1, intra_threads=1)
        pool = PreprocessPool(settings)
        model = GenerativeModel(bundle, settings, pool)
        model.start()
        try:
            return [await _said(model, images, bundle.manifest.eos_token_ids) for images in asked]
        finally:
            model.close()
            pool.close()

    for images, said in zip(asked, asyncio.run(main()), strict=True):
        prompt = runner.prompt([Turn("user", (*[Placeholder.IMAGE] * len(images), "What?"))], images)
        assert said == runner.reply_ids(runner.prefill(prompt, NUM_TOKENS), NUM_TOKENS)
        assert said


async def _said(model: GenerativeModel, images: list[Image.Image], end_ids: tuple[int, ...]) -> list[int]:
    content = (*(ImagePart(_png(image)) for image in images), TextPart("What?"))
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
    request = GenerateRequest("r", "tiny", (Message("user", content),), sampling)
    events = [event async for event in model.generate(request)]
    tokens = [token for event in events[:-1] for token in event.token_ids]
    return [token for token in tokens if token not in end_ids]


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
