"""The files of a video to a clip: by how they begin, whatever they are called."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from bundle.containers import gif, mp4, webp
from bundle.errors import ImageError, MissingExtraError
from bundle.extras import install_line
from bundle.frames.animated import AnimatedFrames
from bundle.frames.clip import Clip
from bundle.frames.limits import DEFAULT_VIDEO_LIMITS, VideoLimits
from bundle.frames.listed import ListedFrames

_EXTRA, _MODULE = "video", "av"


def open_clip(
    files: Sequence[bytes], list_fps: float | None = None, limits: VideoLimits = DEFAULT_VIDEO_LIMITS
) -> Clip:
    """Return a video, counted and timed.

    Args:
        files: One file, or pictures in order.
        list_fps: They are pictures, so many of which make a second; None: there is one file.
        limits: Of the whole.

    Raises:
        ImageError: It is no video that is read here, damaged, or over the limits.
        MissingExtraError: It is an MP4, and what decodes those is not installed.
    """
    num_bytes = sum(map(len, files))
    if num_bytes > limits.max_bytes:
        raise ImageError(f"the video holds {num_bytes} bytes; at most {limits.max_bytes} are read. Scale it down.")
    if list_fps is not None:
        return ListedFrames(files, list_fps)
    (data,) = files
    if data.startswith(gif.SIGNATURE):
        return AnimatedFrames(gif.gif_animation(data), limits)
    if data.startswith(webp.SIGNATURE) and data[8:12] == webp.FORM:
        return AnimatedFrames(webp.webp_animation(data), limits)
    if mp4.is_mp4(data):
        return _mp4(data, limits)
    raise ImageError(
        f"{len(data)} bytes beginning {data[:8]!r} are no video that is read here; send a GIF, a WebP, an MP4, or a "
        "list of frames"
    )


def _mp4(data: bytes, limits: VideoLimits) -> Clip:
    if find_spec(_MODULE) is None:
        raise MissingExtraError(
            f"this server reads no MP4: its extra {_EXTRA!r} is not installed ({install_line(_EXTRA)}). Send a GIF, a "
            "WebP, or a list of frames."
        )
    from bundle.frames.mp4 import Mp4Frames

    return Mp4Frames(data, limits)
