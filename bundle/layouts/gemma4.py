"""The tokens of an image between a start and an end, as many as it has squares of patches (Gemma 4)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bundle.fields import MOST_NAME_CHARACTERS
from bundle.frames.groups import FrameGroups
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt
from bundle.layouts.video_tokens import VideoTokens


class Gemma4Prompt(ImagePrompt):
    """As Gemma 4 was trained.

    Attributes:
        start_token: The text before an image's tokens.
        end_token: The text behind them.
        step_px: Side of the square of pixels that one token stands for.
        video: Its tokens of videos; None: frames are images.
    """

    kind: Literal["gemma4"] = "gemma4"
    start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    step_px: int = Field(gt=0, le=512)
    video: VideoTokens | None = None

    @property
    def own_video(self) -> VideoTokens | None:
        """Tokens of the model's own for a whole video."""
        return self.video

    @property
    def frame_groups(self) -> FrameGroups | None:
        """How frames become tiles where there are such tokens: each by itself."""
        return None if self.video is None else FrameGroups(self.video.num_frames, self.step_px)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image between start and end; of a video those of each frame, behind its time."""
        if layout.video is None or self.video is None:
            return f"{self.start_token}{self.image_token * self.num_tokens(layout)}{self.end_token}"
        video, times_s = self.video, layout.video.middles_s
        frame = f"{video.start_token}{video.token * self._of_one(layout)}{video.end_token}"
        return " ".join(f"{int(time_s // 60):02d}:{int(time_s % 60):02d} {frame}" for time_s in times_s)

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many tokens an image or a video of that size takes."""
        return self._of_one(layout) * (1 if layout.video is None else len(layout.video.middles_s))

    def _of_one(self, layout: TileLayout) -> int:
        """Return how many tokens an image or a frame takes."""
        if layout.fewer_tokens is not None or layout.whole_px is None:
            return super().num_tokens(layout)
        height, width = layout.whole_px
        return (height // self.step_px) * (width // self.step_px)

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's."""
        return super().writes(token) or token in (self.start_token, self.end_token)
