"""Videos through a whole model: prompts as its processor writes them, features as its layout says, kept by content."""

import asyncio
import json
import threading
import weakref
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from bundle.decode import decode_image
from bundle.directory import open_bundle
from bundle.errors import ContextLengthError, ImageError, MachineError, MissingExtraError, ParameterError
from bundle.frames.options import FrameOptions
from bundle.frames.table import LAYOUTS, plan_of
from bundle.image import PREPROCESSOR, ImageSpec
from serving.models import image_process
from serving.models.cut_frames import FrameRoom, cut_frames
from serving.models.generative import GenerativeModel
from serving.models.image_process import ImageProcess
from serving.models.vision import VisionStage
from serving.protocol import GenerateRequest, ImagePart, Message, SamplingParams, TextPart, VideoPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=2, intra_threads=1)
ROOM = FrameRoom(tokens_per_image=4, context_tokens=512)
TOKENS = 4


@pytest.fixture
def model(smolvlm_bundle, pool):
    model = GenerativeModel(open_bundle(smolvlm_bundle), SETTINGS, pool)
    model.start()
    yield model
    model.close()


@pytest.fixture
def spec(smolvlm_bundle) -> ImageSpec:
    return ImageSpec.read(smolvlm_bundle / PREPROCESSOR)


def noise(seed: int, size: tuple[int, int] = (70, 50)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, form)
    return file.getvalue()


def webp(images: list[Image.Image], delay_ms: int = 500) -> bytes:
    file = BytesIO()
    images[0].save(file, "WEBP", save_all=True, append_images=images[1:], duration=delay_ms, lossless=True)
    return file.getvalue()


FRAMES = [noise(seed) for seed in range(5)]
LISTED = tuple(encoded(image) for image in FRAMES)


def video(files: tuple[bytes, ...], **options) -> VideoPart:
    return VideoPart(files, FrameOptions(**options))


def request(*parts: str | bytes | VideoPart, max_tokens: int = 6) -> GenerateRequest:
    made = (TextPart(p) if isinstance(p, str) else ImagePart(p) if isinstance(p, bytes) else p for p in parts)
    return GenerateRequest("r", "tiny-smolvlm", (Message("user", tuple(made)),), SamplingParams(max_tokens=max_tokens))


def run(main) -> None:
    asyncio.run(asyncio.wait_for(main(), 100))


def test_a_list_a_webp_and_single_untiled_pictures_are_the_same_to_the_model(model, answer, spec) -> None:
    """The frames of the tiny model's tiles are its images of tile size."""
    edge = spec.tile_size_px[0]
    small = [image.resize((edge, edge)) for image in FRAMES[:3]]
    images = [encoded(image) for image in small]

    async def main() -> None:
        listed = await answer(model, request(video(tuple(images), list_fps=2.0), "what"))
        animated = await answer(model, request(video((webp(small),)), "what"))
        assert listed.token_ids == animated.token_ids
        assert animated.finished.usage.cached_image_tokens == animated.finished.usage.image_tokens == 3 * TOKENS

    run(main)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_takes_the_tokens_that_its_plan_says(model, answer, layout) -> None:
    async def main() -> None:
        text = (await answer(model, request("what"))).finished.usage
        part = video(LISTED, list_fps=1.0, layout=layout)
        found = (await answer(model, request(part, "what"))).finished.usage
        plan = plan_of(5, part.options, TOKENS, 512)
        assert found.image_tokens == plan.num_tokens
        assert found.prompt_tokens > text.prompt_tokens + plan.num_tokens

    run(main)


def test_images_and_videos_stand_together_in_several_turns_and_are_kept(model, answer) -> None:
    first, second = video(LISTED[:2], list_fps=1.0), video(LISTED[2:], list_fps=1.0, layout="image-grid")

    def chat(*parts) -> GenerateRequest:
        asked = request(*parts)
        turns = (
            asked.messages[0],
            Message("assistant", (TextPart("yes"),)),
            request(second, "and", LISTED[4]).messages[0],
        )
        return GenerateRequest("r", "tiny-smolvlm", turns, SamplingParams(max_tokens=12))

    async def main() -> None:
        mixed = await answer(model, chat("a", LISTED[0], first, "b", LISTED[1]))
        again = await answer(model, chat("a", LISTED[0], first, "b", LISTED[1]))
        assert mixed.token_ids == again.token_ids
        assert again.finished.usage.cached_image_tokens == mixed.finished.usage.image_tokens

    run(main)


def test_one_changed_pixel_of_one_frame_is_encoded_again_and_the_others_are_not(model, answer) -> None:
    pixels = np.asarray(FRAMES[2]).copy()
    pixels[30, 30, 1] ^= 1
    changed = (*LISTED[:2], encoded(Image.fromarray(pixels)), *LISTED[3:])

    async def main() -> None:
        await answer(model, request(video(LISTED, list_fps=1.0), "what"))
        found = (await answer(model, request(video(changed, list_fps=1.0), "what"))).finished.usage
        assert (found.image_tokens, found.cached_image_tokens) == (5 * TOKENS, 4 * TOKENS)
        for expected in (0, TOKENS):  # one picture of all; the second time, both are there
            for files in (LISTED, changed):
                grid = video(files, list_fps=1.0, layout="image-grid")
                found = (await answer(model, request(grid, "what"))).finished.usage
                assert (found.image_tokens, found.cached_image_tokens) == (TOKENS, expected)

    run(main)


def test_the_features_of_a_frame_are_those_of_its_untiled_image(smolvlm_bundle, pool, spec) -> None:
    stage = VisionStage(open_bundle(smolvlm_bundle), SETTINGS, pool)
    stage.worker.start()

    async def main() -> None:
        decoded = await stage.decode_frames("r", video(LISTED, list_fps=1.0), ROOM)
        for image, picture in zip(FRAMES, decoded.pictures, strict=True):
            found = (await stage.encode("r", picture)).features
            (expected,) = stage.run([spec.for_frames.preprocess([image]).pixel_values])
            np.testing.assert_array_equal(found, expected)

    try:
        run(main)
    finally:
        stage.worker.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_child_gives_what_a_thread_gives(spec, layout) -> None:
    process = ImageProcess(30.0)
    options = FrameOptions(layout=layout, list_fps=1.0, num_frames=4)
    try:
        found = process.cut_frames(spec, LISTED, options, ROOM, threading.Event())
    finally:
        process.stop()
    expected = cut_frames(spec, LISTED, options, ROOM)
    assert (found.times_s, found.duration_s) == (expected.times_s, expected.duration_s)
    assert [each.digest for each in found.pictures] == [each.digest for each in expected.pictures]
    assert [each.images[0].tobytes() for each in found.pictures] == [
        each.images[0].tobytes() for each in expected.pictures
    ]
    assert {each.images[0].size for each in found.pictures} == {spec.tile_size_px[::-1]}


def test_a_grid_holds_its_frames_row_by_row_and_black(spec) -> None:
    """Cells of one colour stay of that colour."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    files = tuple(encoded(Image.new("RGB", (30, 20), colour)) for colour in colours)
    (picture,) = cut_frames(spec, files, FrameOptions(layout="image-grid", list_fps=1.0), ROOM).pictures
    tile = np.asarray(picture.images[0])
    half = tile.shape[0] // 2
    cells = [tile[:half, :half], tile[:half, half : 2 * half], tile[half : 2 * half, :half], tile[half:, half:]]
    for cell, colour in zip(cells, [*colours, (0, 0, 0)], strict=True):
        np.testing.assert_array_equal(cell, np.broadcast_to(colour, cell.shape))


REFUSED = {
    "an empty list": ((), {"list_fps": 1.0}, ImageError, "list of frames is empty"),
    "sizes that differ": (
        (LISTED[0], encoded(noise(1, (71, 50)))),
        {"list_fps": 1.0},
        ImageError,
        "frame 1 is 71x50 pixels",
    ),
    "no picture": ((LISTED[0], b"nothing"), {"list_fps": 1.0}, ImageError, "frame 1: 7 bytes"),
    "no video": ((LISTED[0],), {}, ImageError, "no video that is read here"),
    "too many": ((webp(FRAMES * 3),), {"most_frames": 14}, ParameterError, "15 frames to look at; at most 14"),
    "no such layout": (LISTED, {"list_fps": 1.0, "layout": "spiral"}, ParameterError, "must be one of uniform"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_a_video_is_told_and_the_next_is_answered(model, answer, name) -> None:
    files, options, kind, message = REFUSED[name]

    async def main() -> None:
        with pytest.raises(kind, match=message):
            await answer(model, request(video(tuple(files), **options), "what"))
        await answer(model, request(video(LISTED[:1], list_fps=1.0), "what"))

    run(main)


def test_frames_that_fill_the_context_are_refused_before_one_is_decoded(spec, monkeypatch) -> None:
    monkeypatch.setattr("bundle.frames.listed.decode_image", None)
    with pytest.raises(ContextLengthError, match="5 frames take 20 tokens in the layout uniform; the context holds 19"):
        cut_frames(spec, LISTED, FrameOptions(list_fps=1.0), FrameRoom(TOKENS, 19))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_frame_is_held_at_a_time(spec, layout, monkeypatch) -> None:
    """Of 49 megapixels, each is 200 MB."""
    held: list[weakref.ref[Image.Image]] = []
    alive = []

    def decode(data: bytes) -> Image.Image:
        alive.append(sum(each() is not None for each in held))
        image = decode_image(data)
        held.append(weakref.ref(image))
        return image

    monkeypatch.setattr("bundle.frames.listed.decode_image", decode)
    cut_frames(spec, LISTED, FrameOptions(layout=layout, list_fps=1.0), ROOM)
    assert alive == [0] * len(LISTED)


def test_pictures_that_are_not_the_plans_are_refused(spec) -> None:
    """A child that a video took over can send what it likes."""
    options = FrameOptions(list_fps=1.0, most_frames=5)
    cut = cut_frames(spec, LISTED, options, ROOM)
    assert len(cut.plan(options, ROOM).pictures) == 5
    for wrong in (replace(cut, pictures=cut.pictures[:4]), replace(cut, times_s=cut.times_s * 2)):
        with pytest.raises(MachineError, match="which want others"):
            wrong.plan(options, ROOM)
    with pytest.raises(MachineError):
        replace(cut, times_s=cut.times_s * 2, pictures=cut.pictures * 2).plan(options, ROOM)


def test_a_video_that_takes_too_long_is_stopped(spec) -> None:
    process = ImageProcess(0.01)
    try:
        with pytest.raises(ImageError, match=r"the video of \d+ bytes was not decoded within 0.01 s. Ask for fewer"):
            process.cut_frames(spec, LISTED, FrameOptions(list_fps=1.0), ROOM, threading.Event())
        assert process.pid is None
    finally:
        process.stop()


@pytest.mark.parametrize("told", [ImageError("a", "b"), ParameterError("a", "video.fps"), ContextLengthError("a", "c")])
def test_a_childs_refusal_keeps_its_class_and_its_field(spec, told, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise told

    monkeypatch.setattr(image_process, "cut_frames", refuse)
    request = {"spec": spec.model_dump_json(), "frames": {"options": {}, "room": {**vars(ROOM)}}}
    (line,) = image_process._reply(request, [b""])
    error = image_process._error_of(json.loads(line))
    assert (type(error), error.message, error.param) == (type(told), told.message, told.param)


def test_a_childs_lack_of_a_package_is_the_servers_answer(spec, monkeypatch) -> None:
    monkeypatch.setattr("bundle.frames.opening.find_spec", lambda name: None)
    request = {"spec": spec.model_dump_json(), "frames": {"options": {}, "room": {**vars(ROOM)}}}
    (line,) = image_process._reply(request, [b"\0\0\0\x18ftypisom" + bytes(12)])
    error = image_process._error_of(json.loads(line))
    assert type(error) is MissingExtraError
    assert ".[video]" in str(error)
