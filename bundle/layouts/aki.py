"""LLaVA's layout where the tokens of images see the text behind them (AKI)."""

from __future__ import annotations

from typing import ClassVar, Literal

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, LooksAhead


class AkiPrompt(ImagePrompt):
    """As AKI was trained: images, then a question (arXiv 2503.02597)."""

    places_images_in_strings: ClassVar[bool] = True
    looks_ahead: ClassVar[LooksAhead] = "text"

    kind: Literal["aki"] = "aki"

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image."""
        return self.image_token * self.num_tokens(layout)
