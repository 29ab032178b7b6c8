"""An image scaled to fit into a grid of tiles, black where it does not fill it (Llama 3.2 Vision)."""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image
from pydantic import Field

from bundle.image.geometry import EdgePx, Geometry, Sides, resized
from bundle.image.layout import TileLayout

_MOST_TILES = 64


class Canvas(Geometry):
    """Choose the grid of tiles that scales an image least, and lay it into the upper left corner.

    A grid that enlarges the image is taken before one that shrinks it; of equals, the smallest.

    Attributes:
        tile_px: Edge of a tile.
        most_tiles: Of a grid.
    """

    kind: Literal["canvas"] = "canvas"
    tile_px: EdgePx
    most_tiles: int = Field(gt=0, le=_MOST_TILES)

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of the smallest grid."""
        return self.tile_px, self.tile_px

    @property
    def has_one_size(self) -> bool:
        """Whether every image becomes one tile."""
        return self.most_tiles == 1

    @property
    def sides(self) -> Sides | None:
        """From a tile to a row of all tiles."""
        if self.has_one_size:
            return None
        return Sides(
            self.tile_px, self.most_tiles * self.tile_px, math.isqrt(self.most_tiles) * self.tile_px, self.tile_px
        )

    @property
    def for_frames(self) -> Canvas:
        """One tile."""
        return self.model_copy(update={"most_tiles": 1})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the size of the grid that an image is laid into."""
        rows, cols = self._grid(width_px, height_px)
        return TileLayout(whole_px=(rows * self.tile_px, cols * self.tile_px))

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the image in its grid, in one piece."""
        rows, cols = self._grid(*image.size)
        whole = Image.new("RGB", (cols * self.tile_px, rows * self.tile_px))
        whole.paste(resized(image, self._fitted(*image.size, *whole.size), resample))
        return [whole]

    def _grid(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (rows, cols)."""
        sides = range(1, self.most_tiles + 1)
        scales = {
            (rows, cols): min(rows * self.tile_px / height_px, cols * self.tile_px / width_px)
            for rows in sides
            for cols in sides
            if rows * cols <= self.most_tiles
        }
        enlarging = [scale for scale in scales.values() if scale >= 1]
        chosen = min(enlarging) if enlarging else max(scales.values())
        return min((grid for grid, scale in scales.items() if scale == chosen), key=math.prod)

    def _fitted(self, width_px: int, height_px: int, grid_width_px: int, grid_height_px: int) -> tuple[int, int]:
        """Return (width, height) of an image in its grid: as it is where it fits, a tile at least along one side."""
        width = min(max(width_px, self.tile_px), grid_width_px)
        height = min(max(height_px, self.tile_px), grid_height_px)
        by_height, by_width = height / height_px, width / width_px
        if by_width < by_height:
            return width, min(math.floor(height_px * by_width) or 1, height)
        return min(math.floor(width_px * by_height) or 1, width), height
