"""An image's tiles, all of it behind them, and a learned row at the end (DeepSeek-OCR)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import Features, ImagePrompt, Memory, Span


class DeepSeekOcrPrompt(ImagePrompt):
    """As DeepSeek-OCR 2 was trained (arXiv 2601.20552), and with `ends_lines` as DeepSeek-OCR was (arXiv 2510.18234).

    The encoder gives the patches of a tile or of all of an image; behind them the row that ends a line, where lines
    have ends; and the row behind all of an image.

    Attributes:
        tokens_of_tile: Patches of a tile; `tokens_per_tile` are those of all of an image.
        ends_lines: A learned row stands behind each line of patches, and lines of tiles go across all of a grid.
    """

    places_images_in_strings: ClassVar[bool] = True

    kind: Literal["deepseek_ocr"] = "deepseek_ocr"
    tokens_of_tile: int = Field(gt=0, le=1 << 16)
    ends_lines: bool = False

    @property
    def rows_per_tile(self) -> int:
        """The patches of all of an image, and the learned rows."""
        return self.tokens_per_tile + self._num_ends

    @property
    def tokens_per_frame(self) -> int:
        """Those of an image that is not cut."""
        return self._num_of_whole

    @property
    def _num_ends(self) -> int:
        return 1 + self.ends_lines

    @property
    def _num_of_whole(self) -> int:
        lines = math.isqrt(self.tokens_per_tile) if self.ends_lines else 0
        return self.tokens_per_tile + lines + 1

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image."""
        return self.image_token * self.num_tokens(layout)

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many tokens an image takes in a prompt."""
        if layout.fewer_tokens is not None:
            return layout.fewer_tokens
        lines = layout.rows * math.isqrt(self.tokens_of_tile) if self.ends_lines else 0
        return layout.rows * layout.cols * self.tokens_of_tile + lines + self._num_of_whole

    def arranged(self, features: Features, layout: TileLayout) -> Features:
        """Return [num_tokens, D] of an image, its tiles first; of frames [frames, num_tokens, D].

        Args:
            features: [tiles, P + ends, D] where all are of one size, else [rows, D], all of the image last.
            layout: How it was cut.
        """
        if layout.rows == 0:
            whole = np.stack([self._of_whole(each) for each in features])
            return whole if len(whole) > 1 else np.asarray(whole[0])
        num, rows = layout.rows * layout.cols, self.tokens_of_tile + self._num_ends
        flat = features.reshape(-1, features.shape[-1])
        tiles = flat[: num * rows].reshape(num, rows, -1)
        return np.concatenate([self._of_tiles(tiles, layout), self._of_whole(flat[num * rows :])])

    def _of_whole(self, rows: Features) -> Features:
        """Return the tokens of all of an image, from [P + ends, D]."""
        patches = rows[: self.tokens_per_tile]
        if self.ends_lines:
            side = math.isqrt(self.tokens_per_tile)
            patches = with_ends(patches.reshape(side, side, -1), rows[-2])
        return np.concatenate([patches, rows[-1:]])

    def _of_tiles(self, tiles: Features, layout: TileLayout) -> Features:
        """Return the tokens of a grid, from [tiles, P + ends, D]."""
        patches, size = tiles[:, : self.tokens_of_tile], tiles.shape[-1]
        if not self.ends_lines:
            return np.asarray(patches).reshape(-1, size)
        side = math.isqrt(self.tokens_of_tile)
        grid = patches.reshape(layout.rows, layout.cols, side, side, size).transpose(0, 2, 1, 3, 4)
        return with_ends(grid.reshape(layout.rows * side, layout.cols * side, size), tiles[0, -2])


class UnlimitedOcrPrompt(DeepSeekOcrPrompt):
    """As DeepSeek-OCR's, all of which stays in sight of an answer's tokens, whatever windows they have."""

    kind: Literal["unlimited_ocr"] = "unlimited_ocr"  # type: ignore[assignment]

    def memory(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Memory:
        """Return what is seen of a prompt: all of it."""
        return Memory.of_prompt(num_tokens)


def with_ends(picture: Features, end: Features) -> Features:
    """Return [rows * (cols + 1), D] of a picture [rows, cols, D], a row behind each line."""
    ends = np.broadcast_to(end, (len(picture), 1, picture.shape[-1]))
    ended: Features = np.concatenate([picture, ends], axis=1)
    return ended.reshape(-1, picture.shape[-1])
