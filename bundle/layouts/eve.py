"""A token for a whole image, then one for each of its squares and one more behind every line of them (EVE)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt


class EvePrompt(ImagePrompt):
    """As EVE was trained (arXiv 2406.11832, "Patch Embedding Layer"); the encoder gives all of these rows.

    Attributes:
        step_px: Side of the square of pixels that one token stands for.
    """

    kind: Literal["eve"] = "eve"
    step_px: int = Field(gt=0, le=512)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image."""
        return self.image_token * self.num_tokens(layout)

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many tokens an image of that size takes; a frame as many as a square, or as are left of it."""
        if layout.fewer_tokens is not None:
            return layout.fewer_tokens
        if layout.whole_px is None:
            return self.tokens_per_tile
        rows, cols = (side // self.step_px for side in layout.whole_px)
        return 1 + rows * (cols + 1)
