"""ADEM-VL beyond what every family is held to: rows that others left, prompts in chunks, what is refused."""

from __future__ import annotations

import asyncio
import copy
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import ContextLengthError, UnsupportedConfigError
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family
from export.exporter import export_checkpoint
from runtime.one_request import VisionLanguageRunner
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

QUESTION = "What is in it?"
NUM_TOKENS = 6


def images(num: int) -> list[Image.Image]:
    rng = np.random.default_rng(9)
    return [Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(num)]


def request(shown: list[Image.Image]) -> GenerateRequest:
    parts: list[TextPart | ImagePart] = []
    for image in shown:
        target = BytesIO()
        image.save(target, "png")
        parts.append(ImagePart(target.getvalue()))
    message = Message("user", (*parts, TextPart(QUESTION)))
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignores_eos=True)
    return GenerateRequest("r", "tiny", (message,), sampling)


def alone(bundle: Any, shown: list[Image.Image]) -> list[int]:
    runner = VisionLanguageRunner(bundle, EngineSettings(intra_threads=1))
    turn = Turn("user", (*[Placeholder.IMAGE] * len(shown), QUESTION))
    prefilled = runner.prefill(runner.prompt([turn], shown), NUM_TOKENS)
    return [token for token, _ in zip(runner.greedy_tokens(prefilled), range(NUM_TOKENS), strict=False)]


def served(bundle: Any, shown: list[list[Image.Image]], *, at_once: bool, **settings: Any) -> list[list[int]]:
    async def answer(model: GenerativeModel, each: list[Image.Image]) -> list[int]:
        events = [event async for event in model.generate(request(each))]
        assert isinstance(events[-1], FinishedEvent)
        return [token for event in events[:-1] for token in event.token_ids]

    async def main() -> list[list[int]]:
        chosen = EngineSettings(intra_threads=1, **settings)
        pool = PreprocessPool(chosen)
        model = GenerativeModel(bundle, chosen, pool)
        model.start()
        try:
            if at_once:
                return list(await asyncio.gather(*(answer(model, each) for each in shown)))
            return [await answer(model, each) for each in shown]
        finally:
            model.close()
            pool.close()

    return asyncio.run(main())


def test_a_slot_answers_as_if_nobody_had_left_an_image_there(sample_of: Any) -> None:
    bundle = sample_of("llava_adem", 0).bundle()
    first, second = images(2)
    asked = [[first], [], [second], [first]]
    said = served(bundle, asked, at_once=False, max_sequences=1)
    assert said == [alone(bundle, shown) for shown in asked]
    assert len({tuple(each) for each in said}) == 3


def test_other_images_beside_it_and_prompts_in_chunks_change_nothing(sample_of: Any) -> None:
    bundle = sample_of("llava_adem", 0).bundle()
    first, second = images(2)
    asked = [[first], [], [second]]
    said = served(bundle, asked, at_once=True, max_sequences=3, prefill_chunk_tokens=16)
    assert said == [alone(bundle, shown) for shown in asked]


def test_a_second_image_is_refused_before_it_is_encoded(sample_of: Any) -> None:
    with pytest.raises(ContextLengthError, match=r"hold 2 images.*has room for 1"):
        served(sample_of("llava_adem", 0).bundle(), [images(2)], at_once=False)


def test_without_a_template_prompts_are_those_of_the_authors_demonstration(
    families: dict[str, ModuleType], tmp_path: Path
) -> None:
    module = families["llava_adem"]
    module.save(tmp_path / "checkpoint", module.geometries()["overlapping-squares-nothing-dropped"])
    (tmp_path / "checkpoint" / "chat_template.jinja").unlink()
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", name="tiny")
    template = (tmp_path / "bundle" / "chat_template.jinja").read_text()

    def written(*messages: dict[str, Any]) -> str:
        return jinja2.Template(template).render(messages=messages, bos_token="<s>", add_generation_prompt=True)

    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    assert written(asked) == f"<s>Image: <image>Instruction: {QUESTION}\nResponse:"
    plain = {"role": "user", "content": QUESTION}
    assert written(plain) == f"<s>Image: N/AInstruction: {QUESTION}\nResponse:"
    answered = {"role": "assistant", "content": "A cat."}
    assert written(asked, answered, plain).endswith(f"Response: A cat.\nInstruction: {QUESTION}\nResponse:")
    builder = PromptBuilder.from_bundle(open_bundle(tmp_path / "bundle"))
    assert builder.build([Turn("user", (QUESTION,))], []).num_tokens > len(QUESTION)


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("", "no_cls", True, "no_cls is True"),
        ("", "drop_ratio", 1.0, "drop_ratio 1.0: wanted is the part of rows"),
        ("", "down_sample_num", [16, 5], r"down_sample_num \[16, 5\]: wanted are squares of 1 to 4"),
        ("", "down_sample_num", [25], "an image has 4 x 4 patches"),
        ("", "adapter_dim", None, "lacks adapter_dim"),
        ("", "vision_feature_layer", [1, 2], "ADEM-VL reads one layer of a CLIP tower"),
        ("", "mm_projector_type", "linear", "mm_projector_type is 'linear'"),
        ("vision_config", "model_type", "siglip_vision_model", "ADEM-VL reads one layer of a CLIP tower"),
        ("text_config", "model_type", "qwen2", "ADEM-VL is built on llama alone"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    families: dict[str, ModuleType], part: str, key: str, value: Any, told: str
) -> None:
    config = copy.deepcopy(families["llava_adem"].geometries()["two-scales-grouped-heads"])
    place = config[part] if part else config
    place.pop(key) if value is None else place.update({key: value})
    with pytest.raises(UnsupportedConfigError, match=told):
        load_family(config).decoder  # noqa: B018
