"""The tokens of an image between a start and an end, in lines of their own, which see what stands before (Gemma 3n)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bundle.fields import MOST_NAME_CHARACTERS
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt


class Gemma3nPrompt(ImagePrompt):
    """As Gemma 3n was trained.

    Attributes:
        start_token: The text before an image's tokens.
        end_token: The text behind them.
    """

    kind: Literal["gemma3n"] = "gemma3n"
    start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with what stands around them."""
        return f"\n\n{self.start_token}{self.image_token * self.num_tokens(layout)}{self.end_token}\n\n"

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's."""
        return super().writes(token) or token in (self.start_token, self.end_token)
