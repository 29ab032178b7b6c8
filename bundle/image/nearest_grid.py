"""An image stretched to the grid of tiles that is nearest to its shape, and itself once more."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.fixed import Fixed
from bundle.image.geometry import EdgePx, Geometry, resized
from bundle.image.layout import TileLayout

_MOST_TILES = 256
"""Shapes of grids grow with its square times its logarithm; published models have 12."""


class NearestGrid(Geometry):
    """Stretch to `cols` x `rows` tiles, cut, and add the whole image as one more (GOT-OCR 2, InternVL 1.5 and later).

    An image that becomes one tile is not added again.

    Attributes:
        height_px: Of a tile.
        width_px: Of a tile.
        least_tiles: Of a grid.
        most_tiles: Of a grid; 1: the whole image is the only tile.
        most_a_side: Rows or columns of a grid; None: as many as tiles.
    """

    kind: Literal["nearest_grid"] = "nearest_grid"
    height_px: EdgePx
    width_px: EdgePx
    least_tiles: int = Field(gt=0, le=_MOST_TILES)
    most_tiles: int = Field(gt=0, le=_MOST_TILES)
    most_a_side: int | None = Field(default=None, gt=0, le=_MOST_TILES)

    @model_validator(mode="after")
    def _check_tiles(self) -> NearestGrid:
        if self.least_tiles > self.most_tiles:
            raise ValueError(f"from {self.least_tiles} to {self.most_tiles} tiles")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.height_px, self.width_px

    @property
    def for_frames(self) -> Fixed:
        """Never in tiles."""
        return Fixed(height_px=self.height_px, width_px=self.width_px)

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut."""
        cols, rows = self._grid(width_px, height_px)
        return TileLayout(rows=rows, cols=cols) if rows * cols > 1 else TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the tiles row by row, then the whole image."""
        layout, size = self.layout(*image.size), (self.width_px, self.height_px)
        whole = resized(image, size, resample)
        if layout.rows == 0:
            return [whole]
        grid = resized(image, (layout.cols * size[0], layout.rows * size[1]), resample)
        corners = [(col * size[0], row * size[1]) for row in range(layout.rows) for col in range(layout.cols)]
        return [*(grid.crop((left, top, left + size[0], top + size[1])) for left, top in corners), whole]

    def _grid(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (cols, rows); more tiles of equally near shapes while half their area is below the image's."""
        ratio, area = width_px / height_px, width_px * height_px
        least, best = float("inf"), (1, 1)
        for cols, rows in _grids(self.least_tiles, self.most_tiles, self.most_a_side or self.most_tiles):
            difference = abs(ratio - cols / rows)
            is_enlarged_little = area > 0.5 * self.height_px * self.width_px * cols * rows
            if difference < least or (difference == least and is_enlarged_little):
                least, best = difference, (cols, rows)
        return best


@lru_cache(maxsize=32)
def _grids(least_tiles: int, most_tiles: int, most_a_side: int) -> tuple[tuple[int, int], ...]:
    """Return every (cols, rows) of so many tiles, fewer tiles first, of as many the narrower."""
    sides = range(1, min(most_tiles, most_a_side) + 1)
    grids = [(cols, rows) for cols in sides for rows in sides if least_tiles <= cols * rows <= most_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))
