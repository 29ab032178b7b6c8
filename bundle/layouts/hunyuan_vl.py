"""An image's tokens row by row, each row ended by one, all between two more, and where they stand (HunyuanOCR)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, Places, Span

_AROUND = 2
"""Tokens before and behind an image's rows; the encoder gives what stands in their places, and behind each row."""
_OF_IMAGES = 3
"""The last axes: column, row, number of the image."""


class HunYuanVLPrompt(ImagePrompt):
    """As HunyuanOCR was trained (arXiv 2511.19575, XD-RoPE).

    All tokens stand one behind the other on every axis, but for those of an image's rows: on the last three axes these
    stand at their column, their row and the number of their image in the conversation. What follows an image goes on
    as if it had been text.

    Attributes:
        step_px: Side of the square of pixels that one token stands for.
        num_axes: Of positions.
    """

    writes_whole_prompts: ClassVar[bool] = True

    kind: Literal["hunyuan_vl"] = "hunyuan_vl"
    step_px: int = Field(gt=0, le=512)
    num_axes: int = Field(ge=_OF_IMAGES, le=8)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image; the template writes what stands around them."""
        return self.image_token * self.num_tokens(layout)

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many tokens an image of that size takes; a frame as many as are left of it."""
        if layout.fewer_tokens is not None:
            return layout.fewer_tokens
        rows, cols = self._grid(layout)
        return rows * (cols + 1) + _AROUND

    def places(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Places:
        """Return positions [axes, T]."""
        positions = np.tile(np.arange(num_tokens, dtype=np.int64), (self.num_axes, 1))
        for span in spans:
            rows, cols = self._grid(layouts[span.image])
            at = np.arange(span.row, span.row + span.end - span.start, dtype=np.int64) - 1  # behind the one before rows
            is_inside = (at >= 0) & (at < rows * (cols + 1))
            stand = np.stack([at % (cols + 1), at // (cols + 1), np.full_like(at, span.image)])
            own = positions[-_OF_IMAGES:, span.start : span.end]
            own[:, is_inside] = stand[:, is_inside]
        return Places(positions, num_tokens)

    def _grid(self, layout: TileLayout) -> tuple[int, int]:
        """Return (rows, cols) of an image's tokens; a frame's are a square, and of fewer tokens a line."""
        if layout.fewer_tokens is not None:
            return 1, max(layout.fewer_tokens - _AROUND - 1, 0)
        if layout.whole_px is not None:
            return layout.whole_px[0] // self.step_px, layout.whole_px[1] // self.step_px
        side = isqrt(self.tokens_per_tile - _AROUND)  # s (s + 1) of a square
        return side, side
