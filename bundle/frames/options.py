"""What a request says of its video: which frames are looked at, and how they are laid out."""

from __future__ import annotations

from dataclasses import dataclass

UNIFORM = "uniform"


@dataclass(frozen=True)
class FrameOptions:
    """How a video is looked at. Plain data, which crosses to another process as JSON.

    Attributes:
        layout: A name of `bundle.frames.table`.
        num_frames: At most so many frames, evenly in time; None: all, or what `fps` makes.
        fps: Frames for each second of the video; None: as `num_frames` says.
        visual_tokens: Of the whole video, for layouts that choose how many; None: their own.
        most_frames: More are refused.
        list_fps: The video is a list of pictures, so many of which make a second; None: it is one file.
    """

    layout: str = UNIFORM
    num_frames: int | None = None
    fps: float | None = None
    visual_tokens: int | None = None
    most_frames: int = 64
    list_fps: float | None = None
