"""VLoRA beyond what every family is held to: memory that others left, and what a config must not say."""

from __future__ import annotations

import asyncio
import copy
from io import BytesIO
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.errors import ContextLengthError, UnsupportedConfigError
from bundle.prompt import Placeholder, Turn
from export.architectures import load_family
from runtime.one_request import VisionLanguageRunner
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=1, intra_threads=1)
QUESTION = "What is in it?"


def images(num: int) -> list[Image.Image]:
    rng = np.random.default_rng(9)
    return [Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(num)]


def request(num_images: int) -> GenerateRequest:
    parts: list[TextPart | ImagePart] = []
    for image in images(num_images):
        target = BytesIO()
        image.save(target, "png")
        parts.append(ImagePart(target.getvalue()))
    message = Message("user", (*parts, TextPart(QUESTION)))
    return GenerateRequest("r", "tiny", (message,), SamplingParams(max_tokens=6, temperature=0.0, ignores_eos=True))


def test_a_slot_answers_as_if_nobody_had_left_an_image_there(sample_of: Any) -> None:
    bundle = sample_of("llava_vlora", 1).bundle()
    runner = VisionLanguageRunner(bundle, SETTINGS)

    def alone(num: int) -> list[int]:
        turn = Turn("user", (*[Placeholder.IMAGE] * num, QUESTION))
        prefilled = runner.prefill(runner.prompt([turn], images(num)), 6)
        return [token for token, _ in zip(runner.greedy_tokens(prefilled), range(6), strict=False)]

    async def main() -> tuple[list[list[int]], list[int]]:
        pool = PreprocessPool(SETTINGS)
        model = GenerativeModel(bundle, SETTINGS, pool)
        model.start()
        try:
            said, tokens = [], []
            for num in (2, 1, 0, 1):
                events = [event async for event in model.generate(request(num))]
                assert isinstance(events[-1], FinishedEvent)
                said.append([token for event in events[:-1] for token in event.token_ids])
                tokens.append(events[-1].usage.prompt_tokens)
            with pytest.raises(ContextLengthError, match=r"hold 3 images.*has room for 2"):
                [event async for event in model.generate(request(3))]
            return said, tokens
        finally:
            model.close()
            pool.close()

    said, tokens = asyncio.run(main())
    assert said == [alone(num) for num in (2, 1, 0, 1)]
    assert len({tuple(each) for each in said}) == 3
    assert len(set(tokens)) == 1  # an image takes no token


def test_an_image_changes_what_text_says(sample_of: Any) -> None:
    runner = VisionLanguageRunner(sample_of("llava_vlora", 1).bundle(), SETTINGS)
    with_image = runner.prefill(runner.prompt([Turn("user", (Placeholder.IMAGE, QUESTION))], images(1)), 1).logits
    without = runner.prefill(runner.prompt([Turn("user", (QUESTION,))], []), 1).logits
    assert np.abs(with_image - without).max() > 0.1


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("", "vlora_type", "qx", "vlora_type 'qx': wanted are letters of qkvom"),
        ("", "weights_sep", False, "weights_sep"),
        ("", "skip_layers", 3, "skip_layers 3: wanted is a divisor of 2 layers"),
        ("", "vlora_llm_dim", 64, "vlora_llm_dim is 64; text_config has 48"),
        ("", "vlora_pos_num", 9, "vlora_pos_num 9: the tower gives"),
        ("", "vlora_rank", None, "lacks vlora_rank"),
        ("text_config", "num_key_value_heads", 2, "changes matrices of D x D alone"),
        ("text_config", "model_type", "qwen2", "VLoRA is built on llama alone"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    families: dict[str, ModuleType], part: str, key: str, value: Any, told: str
) -> None:
    config = copy.deepcopy(families["llava_vlora"].geometries()["every-other-layer-all-matrices"])
    place = config[part] if part else config
    place.pop(key) if value is None else place.update({key: value})
    with pytest.raises(UnsupportedConfigError, match=told):
        load_family(config).decoder  # noqa: B018
