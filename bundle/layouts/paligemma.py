"""The image token, once for every row of features, before all text; a prompt's tokens see all of it (PaliGemma)."""

from __future__ import annotations

from typing import ClassVar, Literal

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, LooksAhead


class PaliGemmaPrompt(ImagePrompt):
    """As PaliGemma was trained; its template puts all images first."""

    looks_ahead: ClassVar[LooksAhead] = "prompt"

    kind: Literal["paligemma"] = "paligemma"

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image."""
        return self.image_token * self.num_tokens(layout)
