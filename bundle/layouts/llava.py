"""The image token, once for every row of features, and nothing around it (LLaVA-1.5)."""

from __future__ import annotations

from typing import ClassVar, Literal

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt


class LlavaPrompt(ImagePrompt):
    """As LLaVA was trained; its template may read a message as one string, with image tokens in it."""

    places_images_in_strings: ClassVar[bool] = True

    kind: Literal["llava"] = "llava"

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image."""
        return self.image_token * self.num_tokens(layout)
