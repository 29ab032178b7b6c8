"""Rows of patches with a token between them and the same one on both sides, before any text (SOLO)."""

from __future__ import annotations

from typing import ClassVar, Literal

from bundle.image.layout import TileLayout
from bundle.layouts.pixtral import PixtralPrompt


class SoloPrompt(PixtralPrompt):
    """As SOLO was trained (arXiv 2407.06438): `end_token` opens an image as well as it ends it."""

    writes_whole_prompts: ClassVar[bool] = True

    kind: Literal["solo"] = "solo"  # type: ignore[assignment]

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with what stands around them and between their rows."""
        return self.end_token + super().text(layout)
