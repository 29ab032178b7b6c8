"""Tiles with markers of row and column, then the whole image, all of them between a start and an end (LFM2-VL)."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from bundle.fields import MOST_NAME_CHARACTERS
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt

_TILE_MARKER = re.compile(r"<\|img_row_\d+_col_\d+\|>")


class Lfm2VLPrompt(ImagePrompt):
    """As LFM2-VL was trained.

    Attributes:
        start_token: The text before all of an image.
        end_token: The text behind it.
        thumbnail_token: The text before the whole image where tiles stand before it.
        step_px: Side of the square of pixels that one token stands for.
    """

    kind: Literal["lfm2_vl"] = "lfm2_vl"
    start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    thumbnail_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    step_px: int = Field(gt=0, le=512)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with what stands around them and between its tiles."""
        whole = self.image_token * self._num_of_whole(layout)
        if layout.rows == 0:
            return f"{self.start_token}{whole}{self.end_token}"
        tile = self.image_token * self.tokens_per_tile
        tiles = (
            f"{tile_marker(row, col)}{tile}" for row in range(1, layout.rows + 1) for col in range(1, layout.cols + 1)
        )
        return f"{self.start_token}{''.join(tiles)}{self.thumbnail_token}{whole}{self.end_token}"

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many image tokens an image takes in a prompt."""
        return layout.rows * layout.cols * self.tokens_per_tile + self._num_of_whole(layout)

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's, the markers of tiles among them."""
        own = (self.start_token, self.end_token, self.thumbnail_token)
        return super().writes(token) or token in own or _TILE_MARKER.fullmatch(token) is not None

    def _num_of_whole(self, layout: TileLayout) -> int:
        if layout.fewer_tokens is not None:
            return layout.fewer_tokens
        if layout.whole_px is None:
            return self.tokens_per_tile
        height, width = layout.whole_px
        return (height // self.step_px) * (width // self.step_px)


def tile_marker(row: int, col: int) -> str:
    """Return the token before a tile, both counted from 1."""
    return f"<|img_row_{row}_col_{col}|>"
