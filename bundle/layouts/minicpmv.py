"""The number of an image, all of it, and its slices row by row (MiniCPM-V)."""

from __future__ import annotations

import re
from itertools import count
from typing import Literal

from pydantic import Field

from bundle.fields import MOST_NAME_CHARACTERS
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import Features, ImagePrompt


class MiniCPMVPrompt(ImagePrompt):
    """As MiniCPM-V was trained (arXiv 2408.01800, section 3.2).

    Attributes:
        start_token: The text before all of an image.
        end_token: The text behind it.
        slice_start: The text before a slice.
        slice_end: The text behind it.
        number_start: The text before the number of an image in its prompt, counted from 0; empty: none is written.
        number_end: The text behind it.
        step_px: Side of the square of pixels that one token stands for.
    """

    kind: Literal["minicpmv"] = "minicpmv"
    start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    slice_start: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    slice_end: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    number_start: str = Field(default="", max_length=MOST_NAME_CHARACTERS)
    number_end: str = Field(default="", max_length=MOST_NAME_CHARACTERS)
    step_px: int = Field(gt=0, le=512)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image and of its slices, with what stands around them; `tidied` numbers them."""
        first = f"{self.number_start}{self.number_end}{self.start_token}"
        if layout.fewer_tokens is not None:
            return f"{first}{self.image_token * layout.fewer_tokens}{self.end_token}"
        whole = f"{first}{self.image_token * self._num_of(layout.whole_px)}{self.end_token}"
        part = f"{self.slice_start}{self.image_token * self._num_of(layout.tile_px)}{self.slice_end}"
        return whole + "\n".join([part * layout.cols] * layout.rows)

    def tidied(self, text: str) -> str:
        """Return a prompt whose images have their numbers."""
        if not self.number_start:
            return text
        numbers = count()
        bare = re.escape(self.number_start + self.number_end)
        return re.sub(bare, lambda found: f"{self.number_start}{next(numbers)}{self.number_end}", text)

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many image tokens an image takes in a prompt."""
        if layout.fewer_tokens is not None:
            return layout.fewer_tokens
        slices = layout.rows * layout.cols
        return self._num_of(layout.whole_px) + (slices * self._num_of(layout.tile_px) if slices else 0)

    def arranged(self, features: Features, layout: TileLayout) -> Features:
        """Return [num_tokens, D]: slices may have the size of the whole, or another."""
        rows: Features = features.reshape(-1, features.shape[-1])
        return rows

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's."""
        own = (self.start_token, self.end_token, self.slice_start, self.slice_end, self.number_start, self.number_end)
        return super().writes(token) or token in own

    def _num_of(self, size_px: tuple[int, int] | None) -> int:
        if size_px is None:
            return self.tokens_per_tile
        height, width = size_px
        return (height // self.step_px) * (width // self.step_px)
