"""An image that keeps its shape, as large as so many tokens allow."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bundle.image.fixed import Fixed
from bundle.image.geometry import Sides
from bundle.image.keeps_shape import KeepsShape
from bundle.image.layout import TileLayout


class SoftTokens(KeepsShape):
    """Scale both sides alike until the area is that of all tokens, then down to whole steps (Gemma 4).

    Attributes:
        step_px: Side of the square of pixels that one token stands for.
        most_tokens: Of an image.
        frame_tokens: Of a video's frame, where the model has tokens of its own for those; None: frames are images.
    """

    kind: Literal["soft tokens"] = "soft tokens"
    step_px: int = Field(gt=0, le=512)
    most_tokens: int = Field(gt=0, le=1 << 14)
    frame_tokens: int | None = Field(default=None, gt=0, le=1 << 14)

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a square image."""
        side = math.isqrt(self.most_tokens) * self.step_px
        return side, side

    @property
    def sides(self) -> Sides:
        """From a step to a row of all tokens."""
        step = self.step_px
        return Sides(step, self.most_tokens * step, math.isqrt(self.most_tokens) * step, step)

    def of_video(self, num_frames: int, width_px: int, height_px: int) -> Fixed | None:
        """Return the geometry of a video's frames, which keep their shape; None: they have no tokens of their own."""
        if self.frame_tokens is None:
            return None
        height, width = self._sides_px(width_px, height_px, self.frame_tokens)
        return Fixed(height_px=height, width_px=width)

    def within(self, most_px: int) -> SoftTokens:
        """Return the geometry with images of so many pixels at most.

        Raises:
            ValueError: That is less than a token's square.
        """
        bound = most_px // self.step_px**2
        of_frame = None if self.frame_tokens is None else min(bound, self.frame_tokens)
        changes = {"most_tokens": min(bound, self.most_tokens), "frame_tokens": of_frame}
        return SoftTokens.model_validate({**self.model_dump(), **changes})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the size that an image is scaled to; it is never cut."""
        return TileLayout(whole_px=self._sides_px(width_px, height_px, self.most_tokens))

    def _sides_px(self, width_px: int, height_px: int, most_tokens: int) -> tuple[int, int]:
        """Return (height, width) in whole steps, of so many tokens at most."""
        scale = math.sqrt(most_tokens * self.step_px**2 / (width_px * height_px))
        rows, cols = (math.floor(scale * side / self.step_px) for side in (height_px, width_px))
        if rows == 0:
            rows, cols = 1, min(width_px // height_px, most_tokens)
        elif cols == 0:
            rows, cols = min(height_px // width_px, most_tokens), 1
        return rows * self.step_px, max(cols, 1) * self.step_px
