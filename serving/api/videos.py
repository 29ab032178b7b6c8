"""Videos of a chat: the ways in which clients write them, and want them looked at, to a part of the protocol.

No video is fetched, and nothing is decoded here but base64; frames are counted before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from bundle.errors import ImageError, ParameterError
from bundle.frames.options import UNIFORM, FrameOptions
from bundle.frames.table import check_options
from serving.api.contents import FramesContent, VideoContent, VideoSampling
from serving.api.images import UNKNOWN_TYPES, decoded, image_part, split_data_url
from serving.api.schemas import ChatRequest
from serving.api.validation import shown
from serving.protocol import VideoPart
from serving.settings import ApiSettings

_LIST_OF_JPEGS = "video/jpeg"
_ANIMATED_IMAGES = ("image/gif", "image/webp")
_ALL_FRAMES = -1
_LIST_FPS = 1.0
"""Of a list that does not say how many frames make a second: SmolVLM was trained on one a second."""


def options_of(body: ChatRequest, settings: ApiSettings) -> FrameOptions:
    """Return how a request's videos are looked at, where a video itself says nothing.

    Raises:
        ParameterError: Two fields say different things, or one says what cannot be.
    """
    own, media, processor = body.video, body.media_io_kwargs, body.mm_processor_kwargs
    said: dict[str, VideoSampling | None] = {
        "video": own,
        "media_io_kwargs.video": None if media is None else media.video,
        "mm_processor_kwargs": processor,
    }
    options = FrameOptions(
        layout=UNIFORM if own is None or own.layout is None else own.layout,
        num_frames=_agreed("num_frames", said),
        fps=_agreed("fps", said),
        visual_tokens=None if own is None else own.visual_tokens,
        most_frames=settings.max_frames,
    )
    check_options(options)
    return options


def _agreed(name: str, said: dict[str, VideoSampling | None]) -> Any:
    """Return the one value that fields give to an option; None where none does."""
    values = {f"{field}.{name}": getattr(each, name) for field, each in said.items() if each is not None}
    given = {field: value for field, value in values.items() if value is not None}
    if len(set(given.values())) > 1:
        told = ", ".join(f"{field} = {value}" for field, value in given.items())
        raise ParameterError(f"{told}: they differ; send one of them", next(iter(given)))
    return next(iter(given.values()), None)


def video_part(
    content: VideoContent | FramesContent, asked: FrameOptions, settings: ApiSettings, param: str
) -> VideoPart:
    """Return a video as the engine takes it.

    Args:
        content: As a client wrote it.
        asked: Of all videos of the request.
        settings: Limits.
        param: The request field, for errors.

    Raises:
        ImageError: It is no data URL, no video's media type, empty, or too large.
        ParameterError: It has too many frames, or says otherwise than the request.
    """
    if isinstance(content, VideoContent):
        files, is_list = _files(content.video_url.url, settings, f"{param}.video_url.url")
        return VideoPart(files, _options(is_list, asked, settings))
    if isinstance(content.video, str):
        files, is_list = _files(content.video, settings, f"{param}.video")
    else:
        files, is_list = _pictures(content.video, settings, f"{param}.video"), True
    asked = _with_own(content, is_list, asked, param)
    return VideoPart(files, _options(is_list, asked, settings, content.fps if is_list else None))


def _with_own(content: FramesContent, is_list: bool, asked: FrameOptions, param: str) -> FrameOptions:
    """Return the request's options with the video's own in them."""
    own: dict[str, Any] = {"num_frames": ("nframes", content.nframes)}
    if not is_list:
        own["fps"] = ("fps", content.fps)
    for name, (field, value) in own.items():
        if value is None:
            continue
        if getattr(asked, name) not in (None, value):
            raise ParameterError(
                f"{param}.{field} = {value}, and the request asks for {name} = {getattr(asked, name)}; send one",
                f"{param}.{field}",
            )
        asked = replace(asked, **{name: value})
    return asked


def _options(is_list: bool, asked: FrameOptions, settings: ApiSettings, list_fps: float | None = None) -> FrameOptions:
    """Return what one video's frames are chosen by."""
    num_frames = asked.num_frames
    if num_frames is None and asked.fps is None and not is_list:
        num_frames = settings.video_frames
    num_frames = None if num_frames == _ALL_FRAMES else num_frames
    return replace(asked, num_frames=num_frames, list_fps=(list_fps or _LIST_FPS) if is_list else None)


def num_frames_of(part: VideoPart) -> int:
    """Return how many frames are looked at, as far as a request tells; a file that is not opened tells nothing."""
    most = len(part.files) if part.options.list_fps is not None else part.options.num_frames or 1
    return min(most, part.options.num_frames or most)


def _files(url: str, settings: ApiSettings, param: str) -> tuple[tuple[bytes, ...], bool]:
    """Return the files of a data URL, and whether they are a list of pictures."""
    media_type, payload = split_data_url(url, param)
    if media_type == _LIST_OF_JPEGS:
        count = payload.count(",") + 1
        if count > settings.max_frames:
            raise ParameterError(f"{param}: {count} frames; one request may hold {settings.max_frames}", param)
        pictures = (decoded(each, param, settings.max_image_bytes) for each in payload.split(","))
        return _bounded(pictures, settings, param), True
    is_video = media_type.startswith("video/") or media_type in (*_ANIMATED_IMAGES, *UNKNOWN_TYPES)
    if not is_video:
        raise ImageError(
            f"media type {shown(media_type)} is no video's; send video/mp4, image/gif, image/webp or video/jpeg", param
        )
    return (decoded(payload, param, settings.max_video_bytes, "video"),), False


def _pictures(urls: Sequence[str], settings: ApiSettings, param: str) -> tuple[bytes, ...]:
    parts = (image_part(url, f"{param}.{index}", settings.max_image_bytes) for index, url in enumerate(urls))
    return _bounded((part.data for part in parts), settings, param)


def _bounded(files: Iterable[bytes], settings: ApiSettings, param: str) -> tuple[bytes, ...]:
    """Return a list's pictures, which are not decoded beyond the limit of all together."""
    kept, num_bytes = list[bytes](), 0
    for file in files:
        num_bytes += len(file)
        if num_bytes > settings.max_video_bytes:
            raise ImageError(
                f"the frames hold more than {settings.max_video_bytes} bytes together. Scale them down, or send fewer.",
                param,
            )
        kept.append(file)
    return tuple(kept)
