"""The image token for every row of features: of the whole image, then of the grid of its tiles (TextHawk)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt


class TextHawkPrompt(ImagePrompt):
    """As figure 3 of TextHawk draws it (arXiv 2404.09204): nothing stands between tiles.

    Attributes:
        tile_px: Edge of a tile, which becomes `tokens_per_tile` tokens.
    """

    places_images_in_strings: ClassVar[bool] = True

    kind: Literal["texthawk"] = "texthawk"
    tile_px: int = Field(gt=0, le=4096)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image."""
        return self.image_token * self.num_tokens(layout)

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many image tokens an image takes in a prompt."""
        if layout.fewer_tokens is not None:
            return layout.fewer_tokens
        height, width = layout.whole_px or (self.tile_px, self.tile_px)
        tiles = layout.rows * layout.cols + (height // self.tile_px) * (width // self.tile_px)
        return tiles * self.tokens_per_tile
