"""What a video from a caller may cost, judged before a frame of it is decoded."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from bundle.errors import ImageError


class VideoLimits(BaseModel):
    """Limits of one video file; a list of pictures has those of `bundle.decode.ImageLimits` for each.

    Attributes:
        max_bytes: Of the file, or of all pictures of a list together.
        max_frames: In the file: five minutes at 30 a second.
        max_duration_s: An hour.
        max_pixels: Of a frame: 4096 x 2304, which cameras call 4K.
        max_animation_pixels: Of all frames of a GIF or WebP together, since the last is made of all before it: 40 s of
            HD at 25 a second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=20 * 1024 * 1024, gt=0)
    max_frames: int = Field(default=9_000, gt=0)
    max_duration_s: float = Field(default=3_600.0, gt=0)
    max_pixels: int = Field(default=9_437_184, gt=0)
    max_animation_pixels: int = Field(default=1_000_000_000, gt=0)


DEFAULT_VIDEO_LIMITS = VideoLimits()


def check_video(width_px: int, height_px: int, num_frames: int, duration_s: float, limits: VideoLimits) -> None:
    """Refuse a file that says of itself that it is too much.

    Raises:
        ImageError: The message says how much.
    """
    if num_frames > limits.max_frames:
        raise ImageError(
            f"the video holds {num_frames} frames; at most {limits.max_frames} are read. Cut it, or send single frames."
        )
    if duration_s > limits.max_duration_s:
        raise ImageError(f"the video lasts {duration_s:g} s; at most {limits.max_duration_s:g} s are read. Cut it.")
    if min(width_px, height_px) < 1 or width_px * height_px > limits.max_pixels:
        raise ImageError(
            f"the video's frames are {width_px}x{height_px} pixels; at least 1 and at most {limits.max_pixels} are "
            "decoded. Scale it down."
        )
