"""An image once as a tile, and once stretched to the grid of tiles that is nearest to its shape, in one piece."""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.geometry import EdgePx, Sides, check_canvas, resized
from bundle.image.keeps_shape import KeepsShape
from bundle.image.layout import TileLayout
from bundle.image.nearest_grid import NearestGrid

_MOST_TILES = 256


class GridCanvas(KeepsShape):
    """As `NearestGrid`, but that the grid stays one piece, whose encoder cuts it, and the whole comes first (TextHawk).

    An encoder that knows where in the grid a tile lies needs all of it. Of the layout, the one tile of certain size is
    the whole image, and `whole_px` is the grid's; an image that becomes one tile has that alone.

    Attributes:
        tile_px: Edge of a tile.
        least_tiles: Of a grid.
        most_tiles: Of a grid; 1: the whole image is the only tile.
    """

    kind: Literal["grid_canvas"] = "grid_canvas"
    tile_px: EdgePx
    least_tiles: int = Field(gt=0, le=_MOST_TILES)
    most_tiles: int = Field(gt=0, le=_MOST_TILES)

    @model_validator(mode="after")
    def _check_tiles(self) -> GridCanvas:
        if self.least_tiles > self.most_tiles:
            raise ValueError(f"from {self.least_tiles} to {self.most_tiles} tiles")
        check_canvas(self.most_tiles, self.tile_px)
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a tile, and of a frame."""
        return self.tile_px, self.tile_px

    @property
    def sides(self) -> Sides:
        """From one tile to a row of all."""
        tile, most = self.tile_px, self.most_tiles
        return Sides(tile, most * tile, math.isqrt(most) * tile, tile)

    def within(self, most_px: int) -> GridCanvas:
        """Return the geometry with grids of so many pixels at most.

        Raises:
            ValueError: That is less than a tile.
        """
        most = min(self.most_tiles, most_px // self.tile_px**2)
        if not most:
            raise ValueError(f"a tile is {self.tile_px} x {self.tile_px} pixels")
        return GridCanvas(tile_px=self.tile_px, least_tiles=min(self.least_tiles, most), most_tiles=most)

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the grid's size, and whether the whole image comes before it."""
        grid = self._grid.layout(width_px, height_px)
        if not grid.rows:
            return TileLayout(whole_px=self.tile_size_px)
        return TileLayout(rows=1, cols=1, whole_px=(grid.rows * self.tile_px, grid.cols * self.tile_px))

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the whole image as a tile, then the grid."""
        layout = self.layout(*image.size)
        height, width = layout.whole_px or self.tile_size_px
        whole = [resized(image, (self.tile_px, self.tile_px), resample)] if layout.rows else []
        return [*whole, resized(image, (width, height), resample)]

    @property
    def _grid(self) -> NearestGrid:
        edge = self.tile_px
        return NearestGrid(height_px=edge, width_px=edge, least_tiles=self.least_tiles, most_tiles=self.most_tiles)
