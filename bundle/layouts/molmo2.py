"""An image as one crop, then as a canvas, both row by row between a start and an end (Molmo 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bundle.fields import MOST_NAME_CHARACTERS
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, Int64, LooksAhead, Span


class Molmo2Prompt(ImagePrompt):
    """As Molmo 2 was trained: tokens of all images of a prompt, their starts and ends among them, see one another.

    Attributes:
        crop_start_token: Before the tokens of the whole image as one crop.
        start_token: Before those of the canvas.
        end_token: Behind either.
        line_end_token: Behind each row of the canvas.
        ends_lines: Rows of the canvas end with that token.
        ends_crop_lines: Those of the crop do.
        patch_px: Edge of a patch.
        pool: Height and width, in patches, of what becomes a token.
        crop_px: Edge of the crop.
    """

    looks_ahead: ClassVar[LooksAhead] = "all images"

    kind: Literal["molmo2"] = "molmo2"
    crop_start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    line_end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    ends_lines: bool
    ends_crop_lines: bool
    patch_px: int = Field(gt=0, le=512)
    pool: tuple[int, int]
    crop_px: int = Field(gt=0, le=4096)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image with what stands around them; of fewer than all, in one row of the canvas."""
        if layout.fewer_tokens is not None:
            return self._between(self.start_token, (1, layout.fewer_tokens), ends=self.ends_lines)
        crop = self._between(self.crop_start_token, self._grid(self._crop_px), ends=self.ends_crop_lines)
        canvas = self._between(self.start_token, self._grid(layout.whole_px or self._crop_px), ends=self.ends_lines)
        return f"{crop}{canvas}" if layout.rows else crop

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many image tokens an image takes in a prompt."""
        if layout.fewer_tokens is not None:
            return layout.fewer_tokens
        crop, canvas = (
            rows * cols for rows, cols in (self._grid(self._crop_px), self._grid(layout.whole_px or self._crop_px))
        )
        return crop + canvas if layout.rows else crop

    def seen(self, num_tokens: int, spans: Sequence[Span]) -> Int64:
        """Return [2, T] the half-open stretch that each token sees, of which text is to be left out."""
        own = np.arange(num_tokens, dtype=np.int64)
        seen = np.stack([own, own + 1])
        images = [[span for span in spans if span.image == image] for image in sorted({span.image for span in spans})]
        around = [(of_image[0].start - 1, of_image[-1].end + 1 + self.ends_lines) for of_image in images]
        for start, end in around:
            seen[:, start:end] = [[around[0][0]], [around[-1][1]]]
        return seen

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's."""
        own = (self.crop_start_token, self.start_token, self.end_token, self.line_end_token)
        return super().writes(token) or token in own

    @property
    def _crop_px(self) -> tuple[int, int]:
        return self.crop_px, self.crop_px

    def _grid(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """Return (rows, columns) of tokens of a picture of so many pixels."""
        height, width = (-(-length // self.patch_px // pool) for length, pool in zip(size_px, self.pool, strict=True))
        return height, width

    def _between(self, start: str, grid: tuple[int, int], *, ends: bool) -> str:
        rows, cols = grid
        line = self.image_token * cols + (self.line_end_token if ends else "")
        return f"{start}{line * rows}{self.end_token}"
