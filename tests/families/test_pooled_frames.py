"""Videos whose frames are one tile each and fill tokens of their own (LLaVA-NeXT-Video, Molmo 2)."""

from __future__ import annotations

import asyncio
from io import BytesIO
from itertools import islice, takewhile
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from bundle.errors import PromptError, UnsupportedConfigError
from bundle.frames.options import FrameOptions
from bundle.image import PREPROCESSOR, ImageSpec, TileLayout
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family
from export.models.llava_next_video import LlavaNextVideo
from runtime.encoder import open_encoder
from runtime.encoders import encode_images
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart, VideoPart
from serving.settings import EngineSettings

SETTINGS = RuntimeSettings(intra_threads=1)
SAMPLES = (("llava_next_video", 0), ("llava_next_video", 1), ("molmo2", 1))
WITH_IMAGES = ("llava_next_video",)
LOGIT_TOLERANCE = 1e-3
FPS = 4.0


def frames_of(num: int, width_px: int, height_px: int) -> list[Image.Image]:
    rng = np.random.default_rng(num)
    small = (Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)) for _ in range(num))
    return [each.resize((width_px, height_px)) for each in small]


def shown(family: str) -> tuple[list[Image.Image], list[Image.Image]]:
    """Return the frames of a video, and images beside it, of models that take such."""
    return frames_of(3, 90, 50), frames_of(1, 70, 37) if family in WITH_IMAGES else []


def turns(images: list[Image.Image]) -> list[Turn]:
    return [Turn("user", (Placeholder.VIDEO, "What happens?", *[Placeholder.IMAGE] * len(images), "And there?"))]


def inputs_of(sample: Any, frames: list[Image.Image], images: list[Image.Image]) -> Any:
    """Return what transformers makes of a video, images and a question."""
    processor = sample.processor
    processor.video_processor = sample.family.Videos(sample.checkpoint)
    first, second = ({"type": "text", "text": text} for text in ("What happens?", "And there?"))
    asked = [{"role": "user", "content": [{"type": "video"}, first, *[{"type": "image"}] * len(images), second]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    return processor(text=text, images=images or None, videos=[frames], return_tensors="pt")


def filled(bundle: Any, frames: list[Image.Image], images: list[Image.Image]) -> FilledPrompt:
    """Return our prompt of the same, through the bundle's graphs."""
    builder, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))
    prompt = builder.image_prompt
    groups, own = prompt.frame_groups, spec.of_video(len(frames), *frames[0].size)
    assert groups is not None
    assert own is not None
    times_s = [number / FPS for number in range(len(frames))]
    layouts = [groups.layout(times_s, len(frames) / FPS, own.tile_size_px)]
    layouts += [spec.layout(*image.size) for image in images]
    plan = groups.plan(len(frames), own.tile_size_px)
    encoder = open_encoder(bundle, "vision_encoder", SETTINGS)
    encoded = encode_images(
        encoder,
        [
            *([own.grouped(own.pixels(own.cut(frames[each.frames[0]])))] for each in plan.pictures),
            *(list(spec.groups(spec.cut(image))) for image in images),
        ],
        2,
    )
    group = TileLayout(whole_px=own.tile_size_px, is_group=True)
    of_frames = [prompt.arranged(each, group) for each in encoded[: len(frames)]]
    of_images = [prompt.arranged(each, at) for each, at in zip(encoded[len(frames) :], layouts[1:], strict=True)]
    (place,) = plan.places
    rows = place.filled([each.reshape(-1, each.shape[-1]) for each in of_frames])
    assert len(rows) == place.num_tokens == prompt.num_tokens(layouts[0])
    return FilledPrompt.of(builder.build(turns(images), layouts), [rows, *of_images])


@pytest.fixture(params=SAMPLES, ids=str)
def sample(request: pytest.FixtureRequest, sample_of: Any) -> Any:
    return sample_of(*request.param)


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_answers_about_a_video_are_greedy_by_the_references_logits(sample: Any, dialect: str) -> None:
    frames, images = shown(sample.family.__name__.removeprefix("family_"))
    runner, prompt = VisionLanguageRunner(sample.bundle(dialect), SETTINGS), filled(sample.bundle(), frames, images)
    inputs = inputs_of(sample, frames, images)
    assert prompt.prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
    prefilled = runner.prefill(prompt, 64)
    said = islice(runner.greedy_tokens(prefilled), 64)
    wanting = {sample.bundle().manifest.image_prompt.image_token_id, *bundle_video(sample)}
    tokens = list(takewhile(lambda token: token not in wanting, said))  # the reference would want pixels for some
    assert len(tokens) > 3
    expected = sample.logits(inputs, tokens[:-1])
    assert_allclose(runner.forced_logits(prefilled, tokens), expected, atol=LOGIT_TOLERANCE)
    chosen = np.take_along_axis(expected, np.array(tokens)[:, None], axis=1)[:, 0]
    assert (chosen > expected.max(axis=1) - 2 * LOGIT_TOLERANCE).all()


def bundle_video(sample: Any) -> tuple[int, ...]:
    """Return the id of what stands for a video."""
    return (sample.bundle().manifest.image_prompt.own_video.token_id,)


@pytest.mark.parametrize(("family", "number"), SAMPLES[1:])
def test_a_served_chat_sees_a_video_as_one_request_does(family: str, number: int, sample_of: Any) -> None:
    """Twice, the second time by what is kept of it, and an image that is one of its frames between."""
    bundle = sample_of(family, number).bundle()
    frames, images = shown(family)
    runner, prompt = VisionLanguageRunner(bundle, SETTINGS), filled(bundle, frames, images)
    expected = runner.reply_ids(runner.prefill(prompt, 12), 12)
    video = VideoPart(tuple(map(_png, frames)), FrameOptions(list_fps=FPS))
    parts = (video, TextPart("What happens?"), *(ImagePart(_png(each)) for each in images), TextPart("And there?"))
    still = (ImagePart(_png(frames[0])), TextPart("What is it?"))
    first, _, again = asyncio.run(_answered(bundle, parts, still, parts))
    assert first[0] == again[0] == expected
    assert expected
    assert first[1].usage.image_tokens == prompt.prompt.num_image_tokens


async def _answered(bundle: Any, *asked: tuple[Any, ...]) -> list[tuple[list[int], FinishedEvent]]:
    """Return what one server answers, one after the other: tokens, and how each ended."""
    settings = EngineSettings(max_sequences=2, intra_threads=1)
    pool = PreprocessPool(settings)
    model = GenerativeModel(bundle, settings, pool)
    model.start()
    ends, greedy = bundle.manifest.eos_token_ids, SamplingParams(max_tokens=12, temperature=0.0)
    try:
        found = []
        for parts in asked:
            request = GenerateRequest("r", "tiny", (Message("user", parts),), greedy)
            *told, end = [event async for event in model.generate(request)]
            found.append(([token for event in told for token in event.token_ids if token not in ends], end))
        return found
    finally:
        model.close()
        pool.close()


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_video_beside_images_is_refused(sample_of: Any) -> None:
    """Of Molmo 2, which was trained on either."""
    bundle = sample_of("molmo2", 1).bundle()
    with pytest.raises(PromptError, match="takes one video and nothing beside it"):
        filled(bundle, frames_of(2, 90, 50), frames_of(1, 70, 37))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spatial_pool_mode": "conv"}, "spatial_pool_mode 'conv'"),
        ({"spatial_pool_stride": 3}, "spatial_pool_stride 3"),
        ({"vision_config": {"image_size": 40}}, "5 patches a side"),
    ],
)
def test_pooling_that_is_not_built_is_refused(change: dict[str, Any], said: str, families: dict[str, Any]) -> None:
    config = next(iter(families["llava_next_video"].geometries().values()))
    vision = {**config["vision_config"], **change.get("vision_config", {})}
    with pytest.raises(UnsupportedConfigError, match=said):
        load_family({**config, **change, "vision_config": vision})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crop_size": {"height": 48, "width": 48}}, r"frames of \(48, 48\) pixels, the vision tower takes 32"),
        ({"image_mean": [0.5] * 3}, "image_mean"),
    ],
)
def test_frames_of_another_kind_than_images_are_refused(settings: Any, said: str, sample_of: Any) -> None:
    sample = sample_of("llava_next_video", 0)
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    family = LlavaNextVideo(next(iter(sample.family.geometries().values())))
    with pytest.raises(UnsupportedConfigError, match=said):
        family.with_frames(spec, settings, "file")
