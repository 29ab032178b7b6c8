"""The tokens of an image between a start and an end, as many as it has squares of patches (Gemma 4)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bundle.fields import MOST_NAME_CHARACTERS
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt


class Gemma4Prompt(ImagePrompt):
    """As Gemma 4 was trained.

    Attributes:
        start_token: The text before an image's tokens.
        end_token: The text behind them.
        step_px: Side of the square of pixels that one token stands for.
    """

    kind: Literal["gemma4"] = "gemma4"
    start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    step_px: int = Field(gt=0, le=512)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with what stands around them."""
        return f"{self.start_token}{self.image_token * self.num_tokens(layout)}{self.end_token}"

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many tokens an image of that size takes."""
        if layout.fewer_tokens is not None or layout.whole_px is None:
            return super().num_tokens(layout)
        height, width = layout.whole_px
        return (height // self.step_px) * (width // self.step_px)

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's."""
        return super().writes(token) or token in (self.start_token, self.end_token)
