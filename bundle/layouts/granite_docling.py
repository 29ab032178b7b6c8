"""Idefics3's tiles with markers; an image that is one tile is written as the first of a grid (Granite Docling 500M)."""

from __future__ import annotations

from typing import Literal

from bundle.image.layout import TileLayout
from bundle.layouts.idefics3 import Idefics3Prompt


class GraniteDoclingPrompt(Idefics3Prompt):
    """As Granite Docling was trained."""

    kind: Literal["granite_docling"] = "granite_docling"  # type: ignore[assignment]

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with what stands around them and between its tiles."""
        if layout.rows:
            return super().text(layout)
        return f"{self.fake_token}<row_1_col_1>{self.image_token * self.num_tokens(layout)}\n"
