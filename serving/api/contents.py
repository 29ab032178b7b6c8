"""What a message holds, and how what it shows is looked at: texts, images and videos as clients write them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from bundle.image.geometry import Box
from serving.api.fields import Name, OffOrEmptyObject, Strict, Text, Unbuilt, at_most


class ImageUrl(Strict):
    """Where an image is: a data URL, or one of a host that images are fetched from.

    `detail` changes nothing: the model's own resolution is used.
    """

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextContent(Strict):
    """A piece of text."""

    type: Literal["text"]
    text: Text


class ImageContent(Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _check_box(box: list[float]) -> list[float]:
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise PydanticCustomError("no_area", "a box is left, top, right, bottom, left below right and top below bottom")
    return box


def _check_list(box: Any) -> Any:
    if not isinstance(box, list):  # told as a box's fault, and not as that of another kind of input
        raise PydanticCustomError("no_box", "a box is a list of left, top, right, bottom")
    return box


_Share = Annotated[float, Field(ge=0, le=1)]
RegionBox = Annotated[
    list[_Share], Field(min_length=4, max_length=4), BeforeValidator(_check_list), AfterValidator(_check_box)
]
"""Left, top, right, bottom, as shares of an image's width and height."""


class RegionContent(ImageContent):
    """An image, or the part of it that a box says, where the model has vectors of parts.

    `box`: left, top, right, bottom, as shares of the image's width and height.
    """

    box: RegionBox | None = None

    @property
    def region(self) -> Box | None:
        """The box as the engine takes it."""
        if self.box is None:
            return None
        left, top, right, bottom = self.box
        return left, top, right, bottom


class VideoUrl(Strict):
    """Where a video is: a data URL of one file, or of JPEG frames with commas between them (`video/jpeg`)."""

    url: str


class VideoContent(Strict):
    """A video, as vLLM takes it."""

    type: Literal["video_url"]
    video_url: VideoUrl


def _check_not_zero(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("no_frames", "a video is looked at by 1 frame at least; -1 are all")
    return value


_Fps = Annotated[float, Field(ge=1e-5, le=1000)]
"""From a frame a day on: times of slower ones are beyond the numbers that positions are reckoned in."""
_AllFrames = Annotated[int, Field(ge=-1), AfterValidator(_check_not_zero)]
Frames = Annotated[list[str], Field(min_length=1, fail_fast=True), at_most("max_frames", "frames")]


class FramesContent(Strict):
    """A video, as Qwen's clients write it: the data URLs of its frames, or of one file.

    `fps` is how many frames of a list make a second (1 where it is left out), or how many of a file are looked at.
    """

    type: Literal["video"]
    video: str | Frames
    fps: _Fps | None = None
    nframes: int | None = Field(default=None, ge=1)


class VideoSampling(Strict):
    """Which frames of every video of a request are looked at, as vLLM's clients say it; -1 frames are all."""

    num_frames: _AllFrames | None = None
    fps: _Fps | None = None


class VideoOptions(VideoSampling):
    """How every video of a request is looked at.

    `layout`: `uniform`, `thumbnail-and-sampling`, `image-grid` or `progressive-pooling`; `visual_tokens`: what a video
    takes in the layouts that choose.
    """

    layout: Name | None = None
    visual_tokens: int | None = Field(default=None, ge=1)


class VisionOptions(Strict):
    """Which tokens of every image and frame the model reads (docs/compression.md).

    `keep`: the share of each tile's tokens; 1 changes nothing.
    """

    method: Name
    keep: Annotated[float, Field(gt=0, le=1)]


class MediaOptions(Strict):
    """vLLM's options by kind of media."""

    video: VideoSampling | None = None
    image: OffOrEmptyObject = None
    audio: OffOrEmptyObject = None


class ProcessorOptions(VideoSampling):
    """vLLM's options of a model's processor."""

    do_sample_frames: Annotated[Any, Unbuilt((True,))] = None


Part = Annotated[TextContent | RegionContent, Field(discriminator="type")]
ShownContent = Annotated[TextContent | ImageContent | VideoContent | FramesContent, Field(discriminator="type")]
_AtMostParts = at_most("max_parts", "parts")
Parts = Annotated[list[Part], Field(min_length=1, fail_fast=True), _AtMostParts]


class JoinedContent(Strict):
    """Texts and images that are read as one input, as vLLM writes them."""

    content: Parts


Texts = Annotated[list[TextContent], Field(fail_fast=True), _AtMostParts]
Contents = Annotated[list[ShownContent], Field(fail_fast=True), _AtMostParts]
