"""An image padded to a large square; a larger one in a grid of smaller squares before that."""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.geometry import EdgePx, Geometry, Sides, check_canvas, resized
from bundle.image.layout import TileLayout
from bundle.image.nearest_grid import NearestGrid
from bundle.image.padded import Colour, Padded

_MOST_TILES = 256


class PaddedWithTiles(Geometry):
    """Scale the longer side and pad to a square; stretch an image longer than a tile to a grid of tiles beside it.

    The grid is the nearest to the image's shape, as GOT-OCR 2 has it (DeepSeek-OCR, arXiv 2510.18234, section 3.2.2).

    Attributes:
        whole_px: Side of the square that is all of an image.
        tile_px: Side of a tile, and the longest side of an image that is in none.
        least_tiles: Of a grid.
        most_tiles: Of a grid; 0: no image is cut.
        colour: Of the padding.
        centres_evenly: Half of an uneven padding before the image is rounded to an even number (Pillow's `pad`); else
            down.
    """

    kind: Literal["padded_with_tiles"] = "padded_with_tiles"
    whole_px: EdgePx
    tile_px: EdgePx
    least_tiles: int = Field(gt=0, le=_MOST_TILES)
    most_tiles: int = Field(ge=0, le=_MOST_TILES)
    colour: Colour
    centres_evenly: bool = False

    @model_validator(mode="after")
    def _check_tiles(self) -> PaddedWithTiles:
        if self.most_tiles and self.least_tiles > self.most_tiles:
            raise ValueError(f"from {self.least_tiles} to {self.most_tiles} tiles")
        check_canvas(self.most_tiles, self.tile_px)
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of the large square."""
        return self.whole_px, self.whole_px

    @property
    def has_one_size(self) -> bool:
        """False: tiles are smaller than all of an image."""
        return False

    @property
    def sides(self) -> Sides:
        """Those of a tile and of the large square."""
        shorter, longer = sorted((self.tile_px, self.whole_px))
        return Sides(shorter, longer, self.whole_px, math.gcd(shorter, longer))

    @property
    def is_cut_at_once(self) -> bool:
        """True: a small image grows."""
        return True

    @property
    def for_frames(self) -> PaddedWithTiles:
        """Never in tiles."""
        return self.model_copy(update={"most_tiles": 0})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the grid of an image that is cut, and the size of all of it."""
        whole = (self.whole_px, self.whole_px)
        if not self.most_tiles or max(width_px, height_px) <= self.tile_px:
            return TileLayout(whole_px=whole)
        side = self.tile_px
        grid = NearestGrid(height_px=side, width_px=side, least_tiles=self.least_tiles, most_tiles=self.most_tiles)
        found = grid.layout(width_px, height_px)
        return TileLayout(rows=max(found.rows, 1), cols=max(found.cols, 1), whole_px=whole, tile_px=(side, side))

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the tiles row by row, then the whole image."""
        layout, side = self.layout(*image.size), self.tile_px
        whole = self._padded(image, resample)
        if layout.rows == 0:
            return [whole]
        grid = resized(image, (layout.cols * side, layout.rows * side), resample)
        corners = [(col * side, row * side) for row in range(layout.rows) for col in range(layout.cols)]
        return [*(grid.crop((left, top, left + side, top + side)) for left, top in corners), whole]

    def _padded(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        square = Padded(
            side_px=self.whole_px, colour=self.colour, scales_first=True, centres_evenly=self.centres_evenly
        )
        (padded,) = square.tiles(image, resample)
        return padded
