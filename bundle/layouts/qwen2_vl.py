"""As many image tokens as an image has squares of patches, which stand in height and width (Qwen2-VL and later)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Literal

import numpy as np
from pydantic import Field

from bundle.frames.groups import FrameGroups
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, Int64, Places, Span
from bundle.layouts.video_tokens import VideoTokens


class Qwen2VLPrompt(ImagePrompt):
    """As Qwen2-VL, Qwen2.5-VL and Qwen3-VL were trained.

    A text token stands at one number on all three axes; the tokens of an image stand at one time, and at their row and
    column counted from there; those of a video at the time of their group of frames as well. What follows stands behind
    the largest number of all three (arXiv 2409.12191, section 2.1).

    Attributes:
        step_px: Side of the square of pixels that one token stands for.
        video: Its tokens of videos; None: frames are images.
        is_flat: All tokens stand on one axis, one behind the other (POINTS1.5).
    """

    kind: Literal["qwen2_vl"] = "qwen2_vl"
    step_px: int = Field(gt=0, le=512)
    video: VideoTokens | None = None
    is_flat: bool = False

    @property
    def own_video(self) -> VideoTokens | None:
        """Tokens of the model's own for a whole video."""
        return self.video

    @property
    def frame_groups(self) -> FrameGroups | None:
        """How frames become tiles where there are such tokens."""
        return None if self.video is None else FrameGroups(self.video.num_frames, self.step_px)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image or of a video; the template writes what stands around them."""
        if layout.video is None or self.video is None:
            return self.image_token * self.num_tokens(layout)
        video, (rows, cols) = self.video, self._grid(layout)
        group = f"{video.start_token}{video.token * rows * cols}{video.end_token}"
        if not video.start_token:
            return group * len(layout.video.middles_s)
        return "".join(f"<{middle_s:.1f} seconds>{group}" for middle_s in layout.video.middles_s)

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many tokens an image or a video of that size takes."""
        rows, cols = self._grid(layout)
        return rows * cols * (1 if layout.video is None else len(layout.video.middles_s))

    def places(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Places:
        """Return positions [3, T] of time, height and width; [T] where there is one axis."""
        if self.is_flat:
            return super().places(num_tokens, spans, layouts)
        positions, start, position = np.empty((3, num_tokens), np.int64), 0, 0
        for span in spans:
            position = _write_text(positions[:, start : span.start], position)
            at = self._around(layouts[span.image], np.arange(span.end - span.start, dtype=np.int64) + span.row)
            positions[:, span.start : span.end] = position + at
            start, position = span.end, position + self._extent(layouts[span.image], at)
        return Places(positions, _write_text(positions[:, start:], position))

    def _around(self, layout: TileLayout, at: Int64) -> Int64:
        """Return [3, n] where rows of an image's or a video's features stand from its beginning."""
        rows, cols = self._grid(layout)
        group, at = at // (rows * cols), at % (rows * cols)
        return np.stack([self._times(layout, group), at // cols, at % cols])

    def _times(self, layout: TileLayout, group: Int64) -> Int64:
        """Return where groups of frames stand on the axis of time, from the beginning of the video."""
        video = self.video
        if layout.video is None or video is None or video.start_token:
            return np.zeros_like(group)  # words tell the time of each group, which stands by itself
        if video.tokens_per_second is None:
            return group
        step = np.float32(video.tokens_per_second * layout.video.group_s)
        return (group.astype(np.float32) * step).astype(np.int64)

    def _extent(self, layout: TileLayout, at: Int64) -> int:
        """Return how many positions a span takes: what stands behind it begins there."""
        return max(*self._grid(layout), int(at[0, -1]) + 1)

    def _grid(self, layout: TileLayout) -> tuple[int, int]:
        """Return (rows, cols) of an image's tokens; a frame's are a square, or where they are not, a line."""
        if layout.fewer_tokens is None and layout.whole_px is not None:
            return layout.whole_px[0] // self.step_px, layout.whole_px[1] // self.step_px
        num_tokens = self.tokens_per_tile if layout.fewer_tokens is None else layout.fewer_tokens
        side = isqrt(num_tokens)
        return (side, side) if side * side == num_tokens else (1, num_tokens)


def _write_text(positions: Int64, first: int) -> int:
    """Write consecutive positions [3, n] in place; return the one behind them."""
    end = first + int(positions.shape[1])
    positions[:] = np.arange(first, end, dtype=np.int64)
    return end
