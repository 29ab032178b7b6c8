"""Videos by a model's own tokens (Qwen-VL, LFM3-VL) against transformers: prompts, positions, answers."""

from __future__ import annotations

import ast
import asyncio
import math
from io import BytesIO
from itertools import islice, takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from bundle.errors import ImageError, UnsupportedConfigError
from bundle.frames.groups import FrameGroups
from bundle.frames.options import FrameOptions
from bundle.image import PREPROCESSOR, Area, ImageSpec, TileLayout, VideoTimes
from bundle.image.frame_area import FrameArea
from bundle.layouts.qwen2_vl import Qwen2VLPrompt
from bundle.layouts.video_tokens import VideoTokens
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.image_processors.videos import VideoSettings
from graphs.lowering.cuda_encoder import lower_vision_for_cuda
from graphs.store import open_graph
from runtime.encoder import open_encoder
from runtime.encoders import encode_images
from runtime.filled_prompt import FilledPrompt
from runtime.fused_prefix import FusedPrefix
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart, VideoPart
from serving.settings import EngineSettings

SETTINGS = RuntimeSettings(intra_threads=1)
FAMILIES = ("lfm3_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
LOGIT_TOLERANCE = 1e-3
FPS = 5.0
PLACEHOLDERS = (259, 260)


class Videos:
    """In the place of transformers' processor of videos, which wants torchvision: frames that need no scaling.

    A group's patches are those of its frames, which the processor of images makes of each alone, twice over.
    """

    temporal_patch_size = merge_size = 2

    def __init__(self, images: Any) -> None:
        self._images = images

    def __call__(self, videos: list[list[Image.Image]], **_: Any) -> dict[str, Any]:
        import torch
        from transformers.video_utils import VideoMetadata

        (frames,) = videos
        seen = self._images(images=[*frames, *frames[-1:] * (len(frames) % 2)], return_tensors="pt")
        (grid, *others) = seen["image_grid_thw"].tolist()
        assert all(other == grid for other in others)
        rows, cols = grid[1:]
        patch = self._images.patch_size
        single = seen["pixel_values"].reshape(-1, 2, rows * cols, 3, 2, patch, patch)
        groups = torch.stack([single[:, 0, :, :, 0], single[:, 1, :, :, 1]], dim=3)
        grids = torch.tensor([[len(groups), rows, cols]])
        told = VideoMetadata(total_num_frames=len(frames), fps=FPS, frames_indices=list(range(len(frames))))
        return {
            "pixel_values_videos": groups.reshape(len(groups) * rows * cols, -1),
            "video_grid_thw": grids,
            "video_metadata": [told],
        }


def frames_of(num: int, width_px: int, height_px: int) -> list[Image.Image]:
    rng = np.random.default_rng(num)
    return [Image.fromarray(rng.integers(0, 256, (height_px, width_px, 3), np.uint8)) for _ in range(num)]


@pytest.fixture(scope="module", params=[(family, number) for family in FAMILIES for number in (0, 1)], ids=str)
def sample(request: pytest.FixtureRequest, sample_of: Any) -> Any:
    return sample_of(*request.param)


def shown(sample: Any) -> tuple[list[Image.Image], Image.Image]:
    """Return five frames that are encoded as they are, four tokens wide and three high, and an image."""
    side = 2 * int(sample.model.config.vision_config.patch_size)
    return frames_of(5, 4 * side, 3 * side), frames_of(1, 3 * side, 2 * side)[0]


def inputs_of(sample: Any, frames: list[Image.Image], image: Image.Image) -> Any:
    """Return what transformers makes of a video, an image and a question."""
    processor = sample.processor
    processor.video_processor = Videos(processor.image_processor)
    content = [{"type": "video"}, {"type": "text", "text": " and "}, {"type": "image"}]
    asked = [{"role": "user", "content": [*content, {"type": "text", "text": "What happens?"}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    return processor(text=text, images=[image], videos=[frames], return_tensors="pt")


TURNS = [Turn("user", (Placeholder.VIDEO, " and ", Placeholder.IMAGE, "What happens?"))]


def filled(bundle: Any, frames: list[Image.Image], image: Image.Image) -> FilledPrompt:
    """Return our prompt of the same, through the bundle's graphs."""
    builder, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))
    groups = builder.image_prompt.frame_groups
    assert groups is not None
    own = spec.of_video(len(frames), *frames[0].size)
    assert own is not None
    times_s = [number / FPS for number in range(len(frames))]
    layouts = [groups.layout(times_s, len(frames) / FPS, own.tile_size_px), spec.layout(*image.size)]
    plan = groups.plan(len(frames), own.tile_size_px)
    tiles = [own.grouped(own.pixels([frames[each] for each in picture.frames])) for picture in plan.pictures]
    encoder = open_encoder(bundle, "vision_encoder", SETTINGS)
    *of_frames, of_image = encode_images(encoder, [*([tile] for tile in tiles), list(spec.groups(spec.cut(image)))], 2)
    (place,) = plan.places
    features = place.filled([each[0] for each in of_frames])
    assert len(features) == place.num_tokens == plan.num_tokens
    return FilledPrompt.of(builder.build(TURNS, layouts), [features, of_image])


def test_a_videos_prompt_and_positions_are_transformers(sample: Any) -> None:
    frames, image = shown(sample)
    inputs = inputs_of(sample, frames, image)
    found = filled(sample.bundle(), frames, image).prompt
    assert found.token_ids.tolist() == inputs["input_ids"][0].tolist()
    if not hasattr(sample.model.model, "get_rope_index"):  # tokens stand on one axis
        assert_array_equal(found.positions, np.arange(found.num_tokens))
        return
    told = {name: inputs[name] for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts") if name in inputs}
    of_model = sample.model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **told)
    assert_array_equal(found.positions, of_model[0][:, 0].numpy())
    assert found.next_position == found.num_tokens + int(of_model[1])


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_answers_about_a_video_are_greedy_by_the_references_logits(sample: Any, dialect: str) -> None:
    frames, image = shown(sample)
    runner = VisionLanguageRunner(sample.bundle(dialect), SETTINGS)
    prefilled = runner.prefill(filled(sample.bundle(dialect), frames, image), 64)
    said = islice(runner.greedy_tokens(prefilled), 64)
    tokens = list(takewhile(lambda token: token not in PLACEHOLDERS, said))  # the reference would want pixels for those
    assert len(tokens) > 8
    expected = sample.logits(inputs_of(sample, frames, image), tokens[:-1])
    assert_allclose(runner.forced_logits(prefilled, tokens), expected, atol=LOGIT_TOLERANCE)
    chosen = np.take_along_axis(expected, np.array(tokens)[:, None], axis=1)[:, 0]
    assert (chosen > expected.max(axis=1) - 2 * LOGIT_TOLERANCE).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_served_chat_sees_a_video_as_one_request_does(family: str, sample_of: Any) -> None:
    sample = sample_of(family, 0)
    frames, image = shown(sample)
    runner = VisionLanguageRunner(sample.bundle(), SETTINGS)
    prompt = filled(sample.bundle(), frames, image)
    expected = runner.reply_ids(runner.prefill(prompt, 12), 12)
    video = VideoPart(tuple(map(_png, frames)), FrameOptions(list_fps=FPS))
    parts = (video, TextPart(" and "), ImagePart(_png(image)), TextPart("What happens?"))
    ((found, finished),) = answered(sample.bundle(), (Message("user", parts),))
    assert finished.usage.image_tokens == prompt.prompt.num_image_tokens
    ends = sample.bundle().manifest.eos_token_ids
    assert [token for token in found if token not in ends] == expected
    assert expected


def answered(bundle: Any, *asked: tuple[Message, ...], **fields: Any) -> list[tuple[list[int], FinishedEvent]]:
    """Return what one server answers to conversations, one after the other: tokens, and how each ended."""

    async def main() -> list[list[Any]]:
        settings = EngineSettings(max_sequences=2, intra_threads=1)
        pool = PreprocessPool(settings)
        model = GenerativeModel(bundle, settings, pool)
        model.start()
        try:
            greedy = SamplingParams(max_tokens=12, temperature=0.0)
            told = []
            for messages in asked:
                request = GenerateRequest("r", "tiny", messages, greedy, **fields)
                told.append([event async for event in model.generate(request)])
            return told
        finally:
            model.close()
            pool.close()

    return [([token for event in told for token in event.token_ids], end) for *told, end in asyncio.run(main())]


def asked_at(num_frames: int, fps: float) -> tuple[Message, ...]:
    frames = tuple(map(_png, frames_of(num_frames, 70, 37)))
    return (Message("user", (VideoPart(frames, FrameOptions(list_fps=fps)), TextPart("What happens?"))),)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_video_are_no_rows_of_one_at_another_speed(family: str, sample_of: Any) -> None:
    """The same frames at other times stand at other positions (Qwen2.5-VL), though tokens and features are equal."""
    bundle, fast, slow = sample_of(family, 0).bundle(), asked_at(6, 1.0), asked_at(6, 0.2)
    (_, (behind_another, _)), ((alone, _),) = answered(bundle, fast, slow), answered(bundle, slow)
    assert behind_another == alone


@pytest.mark.parametrize("family", FAMILIES[1:4])  # the others' states are not rows alone
def test_a_fused_prefix_remembers_when_a_videos_frames_are(family: str, sample_of: Any) -> None:
    bundle, said = sample_of(family, 0).bundle(), Message("assistant", (TextPart("Yes."),))
    ((_, made),) = answered(bundle, (*asked_at(4, 0.5), said), fuses=True)
    prefix = FusedPrefix.from_bytes(made.fused or b"", bundle.manifest)
    assert [layout.video for layout in prefix.layouts] == [VideoTimes((1.0, 5.0), 4.0)]
    ((found, _),) = answered(bundle, (Message("user", (TextPart("What was it?"),)),), behind=made.fused)
    assert found


def test_bytes_of_groups_and_of_stills_give_the_features_of_normalised_pixels(sample_of: Any, run: Any) -> None:
    bundle = sample_of("qwen3_vl", 0).bundle()
    path, spec = bundle.graph_path("vision_encoder"), ImageSpec.read(bundle.path(PREPROCESSOR))
    model = open_graph(path)
    lower_vision_for_cuda(model, spec, gives_half=False)
    in_bytes, frames = spec.model_copy(update={"normalised_in_graph": True}), frames_of(2, 32, 24)
    for pixels, given in (
        (spec.grouped(spec.pixels(frames)), in_bytes.grouped(in_bytes.pixels(frames))),
        (spec.pixels(frames), in_bytes.pixels(frames)),
    ):
        (expected, *_), (found, *_) = run(open_graph(path), pixel_values=pixels), run(model, pixel_values=given)
        assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def sides_of_reference(model: str) -> Any:
    """Return transformers' own function of a frame's sides, of a module that wants torchvision."""
    import transformers

    path = Path(transformers.__file__).parent / "models" / model / f"video_processing_{model}.py"
    defined = [
        each
        for each in ast.parse(path.read_text()).body
        if isinstance(each, ast.FunctionDef) and each.name == "smart_resize"
    ]
    scope: dict[str, Any] = {"math": math}
    exec(compile(ast.Module(defined, []), str(path), "exec"), scope)
    return scope["smart_resize"]


@pytest.mark.parametrize("of_all", [False, True])
def test_frames_are_scaled_as_the_reference_scales_them(of_all: bool) -> None:
    reference = sides_of_reference("qwen3_vl" if of_all else "qwen2_vl")
    least, most = (16 * 28 * 28, 900 * 28 * 28) if of_all else (4 * 28 * 28, 60 * 28 * 28)
    area = Area(
        step_px=28,
        least_px=784,
        most_px=784,
        frames=FrameArea(num_grouped=2, least_px=least, most_px=most, of_all=of_all),
    )
    sizes = [(640, 360), (30, 30), (20, 90), (1920, 1080), (56, 2800), (333, 777)]
    for width, height in sizes:
        for num_frames in (2, 3, 5, 8, 33):
            counted = {"num_frames": num_frames} if of_all else {}
            wanted = reference(**counted, height=height, width=width, factor=28, min_pixels=least, max_pixels=most)
            found = area.of_video(num_frames, width, height)
            assert found is not None
            assert found.tile_size_px == wanted, (width, height, num_frames)


def test_frames_of_no_usual_shape_are_refused_and_bounds_of_images_bound_them() -> None:
    area = Area(
        step_px=28, least_px=784, most_px=1 << 24, frames=FrameArea(num_grouped=2, least_px=784, most_px=1 << 24)
    )
    with pytest.raises(ImageError, match="the video's frames are 4000 x 10 pixels"):
        area.of_video(4, 4000, 10)
    with pytest.raises(ImageError, match="sides of 4096 at most"):
        area.of_video(4, 9000, 1000)
    smaller = area.within(50_000).of_video(4, 1000, 1000)
    assert smaller is not None
    assert smaller.height_px * smaller.width_px <= 50_000


def layout_of(num_groups: int, group_s: float) -> TileLayout:
    return TileLayout(whole_px=(8, 12), video=VideoTimes(tuple(group_s * n for n in range(num_groups)), group_s))


def prompt_of(**video: Any) -> Qwen2VLPrompt:
    tokens = VideoTokens(token="<v>", token_id=8, num_frames=2, **video)
    return Qwen2VLPrompt(image_token="<i>", image_token_id=9, tokens_per_tile=4, step_px=4, video=tokens)


def test_text_behind_a_long_video_begins_behind_its_last_moment() -> None:
    """As the paper has it, and the code of the model's authors; transformers 5 counts height and width alone."""
    from bundle.layouts.prompt import Span

    for rate, times in ((None, [0, 1, 2, 3, 4]), (3.0, [0, 1, 3, 4, 6])):
        places = prompt_of(tokens_per_second=rate).places(34, [Span(2, 32, 0, 0)], [layout_of(5, 0.5)])
        assert places.positions[0, 2:32:6].tolist() == [2 + time for time in times]
        assert places.positions[:, 32].tolist() == [2 + times[-1] + 1] * 3
        assert places.next_position == 2 + times[-1] + 1 + 2


def test_the_last_group_is_filled_up_with_its_last_frame() -> None:
    plan = FrameGroups(2, 4).plan(5, (8, 12))
    assert [picture.frames for picture in plan.pictures] == [(0, 1), (2, 3), (4, 4)]
    layout = FrameGroups(2, 4).layout([0.0, 1.0, 3.0, 4.0, 9.0], 10.0, (8, 12))
    assert layout.video == VideoTimes((0.5, 3.5, 9.0), 4.0)


def test_a_processor_of_videos_that_contradicts_the_images_is_refused() -> None:
    images = SimpleNamespace(geometry=Area(step_px=28, least_px=784, most_px=7840), mean=(0.5,) * 3, std=(0.5,) * 3)
    settings = VideoSettings(least_px=784, most_px=7840)
    for stated, told in (
        ({"cap_pixels_per_frame": True}, "cap_pixels_per_frame"),
        ({"patch_size": 16, "merge_size": 2}, "squares of 28 pixels"),
        ({"image_mean": [0.4] * 3}, "image_mean"),
        ({"size": {"shortest_edge": 9000, "longest_edge": 784}}, "frames of 9000 to 784 px"),
    ):
        with pytest.raises(UnsupportedConfigError, match=told):
            settings.frames(stated, images, "file")  # type: ignore[arg-type]
