"""The tokens of an image between a start and an end, in lines of their own; crops behind it, with words (Gemma 3)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bundle.fields import MOST_NAME_CHARACTERS
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import Features, ImagePrompt, LooksAhead

_WHOLE, _CROPS = "Here is the original image ", " and here are some crops to help you see better "
"""transformers, `Gemma3Processor.replace_image_token`."""


class Gemma3Prompt(ImagePrompt):
    """As Gemma 3 was trained.

    Attributes:
        start_token: The text before an image's tokens.
        end_token: The text behind them.
    """

    looks_ahead: ClassVar[LooksAhead] = "images"

    kind: Literal["gemma3"] = "gemma3"
    start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image and of its crops, with what stands around them."""
        num_crops = layout.rows * layout.cols
        num_tokens = self.tokens_per_tile if num_crops else self.num_tokens(layout)
        one = f"\n\n{self.start_token}{self.image_token * num_tokens}{self.end_token}\n\n"
        return f"{_WHOLE}{one}{_CROPS}{' '.join([one] * num_crops)}" if num_crops else one

    def arranged(self, features: Features, layout: TileLayout) -> Features:
        """Return an image's features in the order of its tokens: those of the whole image, then of its crops."""
        if not layout.rows or features.ndim < 3:
            return features
        return np.concatenate([features[-1:], features[:-1]]).reshape(-1, features.shape[-1])

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's."""
        return super().writes(token) or token in (self.start_token, self.end_token)
