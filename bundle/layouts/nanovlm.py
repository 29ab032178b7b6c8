"""The whole image behind a marker, then tiles behind markers of row and column (nanoVLM)."""

from __future__ import annotations

import re
from typing import Literal

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt

_TILE_MARKER = re.compile(r"<row_\d+_col_\d+>")


class NanoVLMPrompt(ImagePrompt):
    """As nanoVLM was trained since images are cut; its template numbers several images.

    Attributes:
        global_token: The text before the whole image.
    """

    kind: Literal["nanovlm"] = "nanovlm"

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with what stands before each of its tiles."""
        tokens = self.image_token * (self.tokens_per_tile if layout.rows else self.num_tokens(layout))
        places = [(row, col) for row in range(1, layout.rows + 1) for col in range(1, layout.cols + 1)]
        tiles = "".join(f"<row_{row}_col_{col}>{tokens}" for row, col in places)
        return f"{self.global_token}{tokens}{tiles}"

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's, the markers of tiles among them."""
        return super().writes(token) or _TILE_MARKER.fullmatch(token) is not None
