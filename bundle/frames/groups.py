"""A video as a model's own processor has it: frames in groups, each of which its encoder takes as one tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundle.frames.plan import FramePlan, Joined, Picture
from bundle.image.layout import TileLayout, VideoTimes


@dataclass(frozen=True)
class FrameGroups:
    """How a model with tokens of its own for videos sees one (Qwen2-VL and later).

    Attributes:
        num_frames: Of a group; the last one is filled up with its last frame.
        token_px: Side of the square of pixels that one token stands for.
    """

    num_frames: int
    token_px: int

    def plan(self, num_frames: int, tile_px: tuple[int, int]) -> FramePlan:
        """Return a picture for each group, all of which fill one place.

        Args:
            num_frames: That are looked at, at least 1.
            tile_px: (height, width) of a frame as it is encoded.
        """
        pictures = tuple(
            Picture(tuple(min(frame, num_frames - 1) for frame in range(first, first + self.num_frames)), is_group=True)
            for first in range(0, num_frames, self.num_frames)
        )
        height, width = tile_px
        num_tokens = len(pictures) * (height // self.token_px) * (width // self.token_px)
        return FramePlan(pictures, (Joined(tuple(range(len(pictures))), num_tokens),))

    def layout(self, times_s: Sequence[float], duration_s: float, tile_px: tuple[int, int]) -> TileLayout:
        """Return how a whole video stands in a prompt.

        Args:
            times_s: Of each frame that is looked at.
            duration_s: Of the video.
            tile_px: As of `plan`.
        """
        middles_s = tuple(
            (times_s[first] + times_s[min(first + self.num_frames, len(times_s)) - 1]) / 2
            for first in range(0, len(times_s), self.num_frames)
        )
        group_s = self.num_frames * duration_s / len(times_s)
        return TileLayout(whole_px=tile_px, video=VideoTimes(middles_s, group_s))
