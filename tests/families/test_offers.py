"""What a card offers of a family is taken, and what it does not offer is refused by name."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from bundle.errors import ParameterError
from quant.visual_tokens.table import METHODS
from serving.models.cards import card_of
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import ImagePart, Message, TextPart, TokenizeRequest, VisionReduction
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=1, intra_threads=1)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_vision_methods_that_a_card_tells_are_taken_and_no_others(
    family: str, sample_of: Any, conversations: dict[str, Any]
) -> None:
    bundle = sample_of(family, 0).bundle()
    taken = set(METHODS) & set(card_of(bundle.manifest, SETTINGS).vision_methods)
    image = next(part for part in conversations["one image"] if isinstance(part, Image.Image))
    image.save(file := BytesIO(), "PNG")
    message = Message("user", (ImagePart(file.getvalue()), TextPart("What is it?")))

    async def main() -> None:
        pool = PreprocessPool(SETTINGS)
        model = GenerativeModel(bundle, SETTINGS, pool)
        model.start()
        try:
            for method in METHODS:
                request = TokenizeRequest("r", "tiny", (message,), vision=VisionReduction(method, 0.5))
                if method in taken:
                    await model.tokenize(request)
                else:
                    with pytest.raises(ParameterError, match=f"vision.method '{method}'"):
                        await model.tokenize(request)
        finally:
            model.close()
            pool.close()

    asyncio.run(main())
    assert ("dart" in taken) is (family == "qwen2_vl")


@pytest.mark.parametrize(("family", "wanted"), [("florence2", True), ("instructblip", False)])
def test_a_card_tells_of_a_model_that_takes_one_message(family: str, wanted: bool, sample_of: Any) -> None:
    assert card_of(sample_of(family, 0).bundle().manifest, SETTINGS).takes_one_message is wanted
