"""The whole image, then its tiles, with marks around and between them (Ovis 1.6 and 2)."""

from __future__ import annotations

from typing import Literal

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt

MARKS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
"""Before an image, behind its whole, between columns, between rows, behind it."""


class Ovis2Prompt(ImagePrompt):
    """As Ovis was trained."""

    kind: Literal["ovis2"] = "ovis2"

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with its marks."""
        start, behind_whole, column, row, end = MARKS
        tokens = self.image_token * (self.tokens_per_tile if layout.rows else self.num_tokens(layout))
        line = column.join([tokens] * layout.cols)
        return f"{start}{tokens}{behind_whole}{row.join([line] * layout.rows)}{end}"

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's."""
        return super().writes(token) or token in MARKS
