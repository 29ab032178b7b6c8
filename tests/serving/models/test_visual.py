"""What a conversation shows keeps its order: in the turns, among the pictures, and in what fills the prompt."""

from __future__ import annotations

import numpy as np
from PIL import Image

from bundle.frames.options import FrameOptions
from bundle.frames.table import plan_of
from bundle.image import TileLayout
from bundle.layouts.idefics3 import Idefics3Prompt
from bundle.layouts.llava import LlavaPrompt
from bundle.layouts.prompt import ImagePrompt
from bundle.prompt import Placeholder, Turn
from serving.models.cut_image import CutImage
from serving.models.images import DecodedImage, DecodedVideo, EncodedImage
from serving.models.visual import Visual, all_filled, turns_of
from serving.protocol import ImagePart, Message, TextPart, VideoPart

IMAGE = Placeholder.IMAGE
PLAIN = LlavaPrompt(image_token="<image>", image_token_id=1, tokens_per_tile=4)
SMOLVLM = Idefics3Prompt(image_token="<image>", image_token_id=1, tokens_per_tile=4, frames="smolvlm")


WHOLE = TileLayout()


def decoded(name: str, layout: TileLayout = WHOLE) -> DecodedImage:
    key = name.encode()
    return DecodedImage(key, CutImage(key, 4, 4, (Image.new("RGB", (4, 4)),), is_cut=True), layout)


def video(names: str, layout: str, image_prompt: ImagePrompt = PLAIN) -> Visual:
    plan = plan_of(len(names), FrameOptions(layout=layout, list_fps=1.0), 4, 4096)
    pictures = tuple(decoded(f"{layout}{index}") for index in range(len(plan.pictures)))
    return Visual.of_video(
        DecodedVideo(pictures, plan, tuple(map(float, range(len(names)))), float(len(names))), image_prompt
    )


def encoded(image: DecodedImage, number: int, *, is_kept: bool = False) -> EncodedImage:
    tiles = image.layout.num_tiles
    return EncodedImage(image.key, np.full((tiles, 4, 2), number, np.float32), 0.1 * number, 0.2 * number, is_kept)


MESSAGES = (
    Message("user", (TextPart("a"), ImagePart(b""), VideoPart((), FrameOptions()), TextPart("b"), ImagePart(b""))),
    Message("assistant", (TextPart("yes"),)),
    Message("user", (VideoPart((), FrameOptions()), TextPart("c"))),
)


def test_each_part_stands_where_the_caller_put_it() -> None:
    visuals = [
        Visual.of_image(decoded("i0", TileLayout(1, 2))),
        video("ab", "uniform"),
        Visual.of_image(decoded("i1")),
        video("abcd", "thumbnail-and-sampling"),
    ]
    assert turns_of(MESSAGES, visuals) == [
        Turn("user", ("a", IMAGE, IMAGE, IMAGE, "b", IMAGE)),
        Turn("assistant", ("yes",)),
        Turn("user", (IMAGE, IMAGE, "c")),
    ]


def test_smolvlms_words_stand_around_its_frames() -> None:
    (turn,) = turns_of(
        (Message("user", (VideoPart((), FrameOptions()), TextPart("?"))),), [video("ab", "uniform", SMOLVLM)]
    )
    first, time, image, *rest = turn.parts
    assert (first, time, image) == (
        "You are provided the following series of two frames from a 0:00:02 [H:MM:SS] video.\n",
        "\nFrame from 00:00:",
        IMAGE,
    )
    assert rest == ["\nFrame from 00:01:", IMAGE, "\n\n", "?"]


def test_what_fills_the_prompt_is_of_its_own_part_and_counts_its_rows() -> None:
    visuals = [
        Visual.of_image(decoded("i0", TileLayout(1, 2))),
        video("ab", "uniform"),
        Visual.of_image(decoded("i1")),
        video("abcd", "thumbnail-and-sampling"),
    ]
    pictures = [picture for visual in visuals for picture in visual.pictures]
    filled = all_filled(visuals, [encoded(each, number) for number, each in enumerate(pictures)])
    layouts = [layout for visual in visuals for layout in visual.layouts]
    assert [each.num_rows for each in filled] == [PLAIN.num_tokens(layout) for layout in layouts]
    assert [each.key for each in filled[:5]] == [b"i0", b"uniform0", b"uniform1", b"i1", b"thumbnail-and-sampling0"]
    assert [float(each.features.flat[0]) for each in filled[:5]] == [0, 1, 2, 3, 4]
    assert set(filled[5].features[:, 0].tolist()) == {5.0, 6.0, 7.0, 8.0}


def test_a_place_costs_its_dearest_picture_and_is_kept_where_all_are() -> None:
    visual = video("abc", "thumbnail-and-sampling")
    for kept in ([True] * 4, [True, True, False, True]):
        pairs = zip(visual.pictures, kept, strict=True)
        filled = visual.filled([encoded(each, number, is_kept=is_kept) for number, (each, is_kept) in enumerate(pairs)])
        assert [each.is_kept for each in filled] == [True, all(kept)]
        assert (round(filled[1].preprocess_s, 3), round(filled[1].vision_s, 3)) == (0.3, 0.6)
