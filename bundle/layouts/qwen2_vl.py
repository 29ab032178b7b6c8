"""As many image tokens as an image has squares of patches, which stand in height and width (Qwen2-VL and later)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Literal

import numpy as np
from pydantic import Field

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, Int64, Places, Span


class Qwen2VLPrompt(ImagePrompt):
    """As Qwen2-VL, Qwen2.5-VL and Qwen3-VL were trained.

    A text token stands at one number on all three axes; the tokens of an image stand at one time, and at their row and
    column counted from there. What follows an image stands behind its longer side (arXiv 2409.12191, section 2.1).

    Attributes:
        step_px: Side of the square of pixels that one token stands for.
    """

    kind: Literal["qwen2_vl"] = "qwen2_vl"
    step_px: int = Field(gt=0, le=512)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image; the template writes what stands around them."""
        return self.image_token * self.num_tokens(layout)

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many tokens an image of that size takes."""
        rows, cols = self._grid(layout)
        return rows * cols

    def places(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Places:
        """Return positions [3, T] of time, height and width."""
        positions, start, position = np.empty((3, num_tokens), np.int64), 0, 0
        for span in spans:
            position = _write_text(positions[:, start : span.start], position)
            rows, cols = self._grid(layouts[span.image])
            at = np.arange(span.end - span.start, dtype=np.int64) + span.row
            positions[:, span.start : span.end] = position + np.stack([np.zeros_like(at), at // cols, at % cols])
            start, position = span.end, position + max(rows, cols)
        return Places(positions, _write_text(positions[:, start:], position))

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
