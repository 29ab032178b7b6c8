"""An image stretched to whole tiles at nearly its shape, behind itself as one tile (nanoVLM)."""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.fixed import Fixed
from bundle.image.geometry import EdgePx, Geometry, check_canvas, resized
from bundle.image.layout import TileLayout

_MOST_TILES_A_SIDE = 64


class StretchedGrid(Geometry):
    """Stretch both sides up to whole tiles, the longer one to `longest_px` at most, and put the whole before the tiles.

    The whole is scaled down from the stretched picture, bilinear whatever the filter is. An image that becomes one tile
    is that tile alone.

    Attributes:
        tile_px: Side of a tile.
        longest_px: Of the longer side, whole tiles.
        grows: Smaller images are scaled up until their longer side is that; else up to their next whole tile.
    """

    kind: Literal["stretched_grid"] = "stretched_grid"
    tile_px: EdgePx
    longest_px: int = Field(gt=0, le=1 << 16)
    grows: bool

    @model_validator(mode="after")
    def _check_tiles(self) -> StretchedGrid:
        num, rest = divmod(self.longest_px, self.tile_px)
        if rest or num > _MOST_TILES_A_SIDE:
            raise ValueError(
                f"a longer side of {self.longest_px} px in tiles of {self.tile_px}: wanted are 1 to "
                f"{_MOST_TILES_A_SIDE} whole ones"
            )
        check_canvas(num**2, self.tile_px)
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.tile_px, self.tile_px

    @property
    def for_frames(self) -> Fixed:
        """Never in tiles."""
        return Fixed(height_px=self.tile_px, width_px=self.tile_px)

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut."""
        longest = max(width_px, height_px)
        long = self.longest_px if self.grows else min(self.longest_px, self._up(longest))
        # in the order of the reference, for a quotient may fall on a whole tile or just behind it
        short = max(self._up(min(width_px, height_px) * (long / longest)), self.tile_px)
        rows, cols = (short, long) if width_px >= height_px else (long, short)
        rows, cols = rows // self.tile_px, cols // self.tile_px
        return TileLayout(rows=rows, cols=cols) if rows * cols > 1 else TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the whole image, then the tiles row by row."""
        layout, edge = self.layout(*image.size), self.tile_px
        picture = resized(image, (max(layout.cols, 1) * edge, max(layout.rows, 1) * edge), resample)
        whole = resized(picture, (edge, edge), Image.Resampling.BILINEAR)
        corners = [(col * edge, row * edge) for row in range(layout.rows) for col in range(layout.cols)]
        return [whole, *(picture.crop((left, top, left + edge, top + edge)) for left, top in corners)]

    def _up(self, side_px: float) -> int:
        """Return a side as whole tiles, none shorter."""
        return math.ceil(side_px / self.tile_px) * self.tile_px
