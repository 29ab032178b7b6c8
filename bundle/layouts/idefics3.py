"""Tiles with markers of row and column, then the whole image, each between fake tokens (Idefics3, SmolVLM)."""

from __future__ import annotations

import re
from typing import Literal

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt

_TILE_MARKER = re.compile(r"<row_\d+_col_\d+>")


class Idefics3Prompt(ImagePrompt):
    """As Idefics3 and SmolVLM were trained.

    Attributes:
        fake_token: The text before and after each tile.
        global_token: The text before the downscaled whole image.
    """

    kind: Literal["idefics3"] = "idefics3"

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with what stands around them and between its tiles."""
        tokens = self.image_token * (self.tokens_per_tile if layout.rows else self.num_tokens(layout))
        whole = f"{self.fake_token}{self.global_token}{tokens}{self.fake_token}"
        if layout.rows == 0:
            return whole
        lines = [
            "".join(f"{self.fake_token}<row_{row}_col_{col}>{tokens}" for col in range(1, layout.cols + 1)) + "\n"
            for row in range(1, layout.rows + 1)
        ]
        return "".join(lines) + "\n" + whole

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's, the markers of tiles among them."""
        return super().writes(token) or _TILE_MARKER.fullmatch(token) is not None
