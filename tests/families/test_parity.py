"""Every family against transformers: prompts token by token, logits, greedy answers, variants, and a served chat."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image, ImageOps

from bundle.directory import Bundle, open_bundle
from bundle.frames.options import FrameOptions
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.prompt import Placeholder, PromptBuilder, Turn
from quant.quantizer import quantize_bundle
from runtime.encoder import open_encoder
from runtime.encoders import encode_images
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart, VideoPart
from serving.settings import EngineSettings

FAMILIES = tuple(
    sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if path.stem != "conftest" and not path.stem.startswith("test_")
    )
)
GEOMETRIES = [(family, number) for family in FAMILIES for number in (0, 1)]
# float32 sums in another order, on logits whose largest are above 10; an error in a graph makes 1e-1 and more
LOGIT_TOLERANCE = 1e-3
GREEDY_TOKENS = 64
SETTINGS = RuntimeSettings(intra_threads=1)


def turns_of(parts: list[str | Image.Image]) -> list[Turn]:
    return [Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))]


def images_of(parts: list[str | Image.Image]) -> list[Image.Image]:
    return [part for part in parts if isinstance(part, Image.Image)]


@pytest.fixture(params=GEOMETRIES, ids=[f"{family}-{number}" for family, number in GEOMETRIES])
def sample(request: pytest.FixtureRequest, sample_of: Any) -> Any:
    return sample_of(*request.param)


def test_prompts_are_the_processors_token_by_token(sample: Any, conversations: dict[str, Any]) -> None:
    bundle = sample.bundle()
    builder, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))
    for name, parts in sample.conversations(conversations).items():
        shown = images_of(parts)
        layouts = [spec.among(len(shown)).layout(*image.size) for image in shown]
        found = builder.build(turns_of(parts), layouts)
        assert found.token_ids.tolist() == sample.inputs(parts)["input_ids"][0].tolist(), name


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_answers_are_greedy_by_the_references_logits(sample: Any, conversations: dict[str, Any], dialect: str) -> None:
    """Or a token's logit is as high: which of two such is the largest, the order of a sum decides."""
    runner = VisionLanguageRunner(sample.bundle(dialect), SETTINGS)
    said = set[int]()
    for name, parts in sample.conversations(conversations).items():
        prefilled = runner.prefill(runner.prompt(turns_of(parts), images_of(parts)), GREEDY_TOKENS)
        tokens = [token for token, _ in zip(runner.greedy_tokens(prefilled), range(GREEDY_TOKENS), strict=False)]
        expected = sample.logits(sample.inputs(parts), tokens[:-1])
        assert_allclose(runner.forced_logits(prefilled, tokens), expected, atol=LOGIT_TOLERANCE, err_msg=name)
        chosen = np.take_along_axis(expected, np.array(tokens)[:, None], axis=1)[:, 0]
        assert (chosen > expected.max(axis=1) - 2 * LOGIT_TOLERANCE).all()
        said.update(tokens)
    assert len(said) > 10  # a decoder that repeats one token would agree however wrong it is


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("weights", "least"), [("int8", 0.8), ("int4", 0.2)])
def test_quantized_variants_say_nearly_the_same(
    family: str, weights: str, least: float, sample_of: Any, conversations: dict[str, Any], tmp_path: Path
) -> None:
    """As nearly as random weights do: 270 numbers that have nothing to do with others agree by 0.2 once in 1000."""
    sample = sample_of(family, 0)
    parent = sample.bundle()
    quantize_bundle(parent.directory, tmp_path / weights, weights=weights)
    runner = VisionLanguageRunner(open_bundle(tmp_path / weights, allow_ungated=True), SETTINGS)
    whole = VisionLanguageRunner(parent, SETTINGS)
    parts = sample.conversations(conversations)["two images"]
    prompts = [each.prompt(turns_of(parts), images_of(parts)) for each in (whole, runner)]
    answer = whole.reply_ids(whole.prefill(prompts[0], 4), 4)
    expected, found = whole.answer_logits(prompts[0], answer), runner.answer_logits(prompts[1], answer)
    for at in range(len(answer)):
        assert np.corrcoef(expected[at], found[at])[0, 1] > least


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_of_one_size_are_encoded_together_as_alone(
    family: str, sample_of: Any, conversations: dict[str, Any]
) -> None:
    bundle = sample_of(family, 0).bundle()
    spec, encoder = ImageSpec.read(bundle.path(PREPROCESSOR)), open_encoder(bundle, "vision_encoder", SETTINGS)
    shown = images_of(conversations["two images"])
    images = [tuple(spec.groups(spec.cut(image))) for image in (*shown, ImageOps.invert(shown[0]))]
    asked = [None] * 3 if bundle.manifest.question is None else [(2, 7, 3), (2, 9, 8, 3), (2, 7, 3)]
    together = encode_images(encoder, images, 4, questions=asked)
    for image, question, found in zip(images, asked, together, strict=True):
        assert_allclose(found, encode_images(encoder, [image], 1, questions=[question])[0], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_served_chats_say_what_one_request_says(family: str, sample_of: Any, conversations: dict[str, Any]) -> None:
    sample = sample_of(family, 0)
    bundle, asked = sample.bundle(), sample.conversations(conversations)
    runner = VisionLanguageRunner(bundle, SETTINGS)
    chats = [asked["two images"], asked["one image"], asked["one image"]]

    frame = images_of(chats[1])[0]

    async def main() -> tuple[list[list[int]], int | None]:
        settings = EngineSettings(max_sequences=3, intra_threads=1)
        pool = PreprocessPool(settings)
        model = GenerativeModel(bundle, settings, pool)
        model.start()
        try:
            said = await asyncio.gather(*(_served(model, parts) for parts in chats))
            return said, await _tokens_of_frames(model, frame) if sample.takes_videos else None
        finally:
            model.close()
            pool.close()

    answers, frame_tokens = asyncio.run(main())
    assert not sample.takes_videos or frame_tokens == _tokens_of_two(bundle, frame)
    for parts, tokens in zip(chats, answers, strict=True):
        prefilled = runner.prefill(runner.prompt(turns_of(parts), images_of(parts)), 12)
        said = [token for token in tokens if token not in bundle.manifest.eos_token_ids]
        assert said == runner.reply_ids(prefilled, 12)
        assert said


async def _served(model: GenerativeModel, parts: list[str | Image.Image]) -> list[int]:
    content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(_png(part)) for part in parts)
    request = GenerateRequest("r", "tiny", (Message("user", content),), SamplingParams(max_tokens=12, temperature=0.0))
    events = [event async for event in model.generate(request)]
    assert isinstance(events[-1], FinishedEvent)
    return [token for event in events[:-1] for token in event.token_ids]


async def _tokens_of_frames(model: GenerativeModel, frame: Image.Image) -> int:
    """Return how many image tokens a video of two frames takes."""
    video = VideoPart((_png(frame), _png(ImageOps.invert(frame))), FrameOptions(list_fps=1.0))
    message = Message("user", (video, TextPart("What happens?")))
    events = [
        event async for event in model.generate(GenerateRequest("r", "tiny", (message,), SamplingParams(max_tokens=2)))
    ]
    assert isinstance(events[-1], FinishedEvent)
    return events[-1].usage.image_tokens


def _tokens_of_two(bundle: Bundle, frame: Image.Image) -> int:
    """Return how many tokens two such frames take, as two images or as one group of a video."""
    prompt = bundle.manifest.image_prompt
    assert prompt is not None
    groups, own = prompt.frame_groups, ImageSpec.read(bundle.path(PREPROCESSOR)).of_video(2, *frame.size)
    if groups is None or own is None:
        return 2 * prompt.tokens_per_frame
    return groups.plan(2, own.tile_size_px).num_tokens


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
