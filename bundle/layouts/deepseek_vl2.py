"""All of an image, a learned row, then its tiles as one picture; a learned row behind each line (DeepSeek-VL2)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from bundle.image.layout import TileLayout
from bundle.layouts.deepseek_ocr import with_ends
from bundle.layouts.prompt import Features, ImagePrompt


class DeepSeekVL2Prompt(ImagePrompt):
    """As DeepSeek-VL2 was trained with tile tags in two dimensions (arXiv 2412.10302, section 2).

    The encoder gives a tile's patches, and behind them the row that ends a line and the one between both views. An
    image of one tile stands there twice: as all of it, and as its only tile, which has the same pixels.
    """

    writes_whole_prompts: ClassVar[bool] = True

    kind: Literal["deepseek_vl2"] = "deepseek_vl2"

    @property
    def rows_per_tile(self) -> int:
        """A tile's patches, and the two learned rows."""
        return self.tokens_per_tile + 2

    @property
    def tokens_per_frame(self) -> int:
        """Those of an image of one tile."""
        return self.num_tokens(TileLayout())

    @property
    def _side(self) -> int:
        return math.isqrt(self.tokens_per_tile)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image."""
        return self.image_token * self.num_tokens(layout)

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many tokens an image takes in a prompt."""
        if layout.fewer_tokens is not None:
            return layout.fewer_tokens
        side, rows, cols = self._side, max(layout.rows, 1), max(layout.cols, 1)
        return side * (side + 1) + 1 + rows * side * (cols * side + 1)

    def arranged(self, features: Features, layout: TileLayout) -> Features:
        """Return [num_tokens, D] of an image; of frames [frames, num_tokens, D].

        Args:
            features: [tiles, P + 2, D], all of the image last.
            layout: How it was cut.
        """
        if layout.rows:
            return self._of(features[:-1], features[-1], layout.rows, layout.cols)
        frames = np.stack([self._of(each[None], each, 1, 1) for each in features])
        return frames if len(frames) > 1 else np.asarray(frames[0])

    def _of(self, tiles: Features, whole: Features, rows: int, cols: int) -> Features:
        side, size, num = self._side, whole.shape[-1], self.tokens_per_tile
        end, between = whole[num], whole[num + 1 : num + 2]
        first = with_ends(whole[:num].reshape(side, side, size), end)
        grid = tiles[:, :num].reshape(rows, cols, side, side, size).transpose(0, 2, 1, 3, 4)
        return np.concatenate([first, between, with_ends(grid.reshape(rows * side, cols * side, size), end)])
