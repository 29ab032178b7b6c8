"""An image that keeps its shape; a large one is also cut into the nearest grid of tiles."""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.geometry import EdgePx, Sides, resized
from bundle.image.keeps_shape import KeepsShape
from bundle.image.layout import TileLayout
from bundle.image.nearest_grid import NearestGrid

_LARGEST_AREA_PX = 1 << 24
_MOST_TILES = 256

_NARROWEST = 200
"""Times as long as it is wide, that an image is reckoned with."""


class SplitArea(KeepsShape):
    """Scale to whole steps within an area; beside that, stretch a much larger image to a grid of tiles (LFM2-VL).

    Attributes:
        step_px: Both sides of the scaled image are multiples of it: a patch, times the patches that become one token.
        patch_px: Side of a patch: an image's sides count as that at least when it is asked whether it is large.
        least_px: Least area of the scaled image, where its sides are not a step already.
        most_px: Largest area of it, likewise.
        tolerance: An image is cut where its area is above so many times `most_px`.
        tile_px: Edge of a tile.
        least_tiles: Of a grid.
        most_tiles: Of a grid; 1: no image is cut.
    """

    kind: Literal["split_area"] = "split_area"
    step_px: int = Field(gt=0, le=512)
    patch_px: int = Field(gt=0, le=512)
    least_px: int = Field(gt=0, le=_LARGEST_AREA_PX)
    most_px: int = Field(gt=0, le=_LARGEST_AREA_PX)
    tolerance: float = Field(gt=0, le=1e3)
    tile_px: EdgePx
    least_tiles: int = Field(gt=0, le=_MOST_TILES)
    most_tiles: int = Field(gt=0, le=_MOST_TILES)

    @model_validator(mode="after")
    def _check_bounds(self) -> SplitArea:
        if not self.step_px**2 <= self.most_px or self.least_px > self.most_px:
            raise ValueError(f"areas from {self.least_px} to {self.most_px} px in steps of {self.step_px} px a side")
        if self.tile_px % self.step_px:
            raise ValueError(f"tiles of {self.tile_px} px are no multiple of steps of {self.step_px} px")
        if self.most_tiles > 1 and not 2 <= self.least_tiles <= self.most_tiles:
            raise ValueError(f"from {self.least_tiles} to {self.most_tiles} tiles; a grid has 2 at least")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a tile, and of a frame."""
        return self.tile_px, self.tile_px

    @property
    def sides(self) -> Sides:
        """From a step to what an image has that is 200 times as long as it is wide; those of tiles are between."""
        step, square = self.step_px, math.isqrt(self.most_px) // self.step_px * self.step_px
        longest = math.isqrt(_NARROWEST * self.most_px) // step * step + step
        return Sides(step, max(longest, self.tile_px), max(square, self.tile_px), step)

    def within(self, most_px: int) -> SplitArea:
        """Return the geometry with images of so many pixels at most, all tiles of one together as well.

        Raises:
            ValueError: That is less than a step's square.
        """
        most = min(most_px, self.most_px)
        tiles = min(self.most_tiles, most_px // self.tile_px**2)
        tiles = tiles if tiles >= self.least_tiles else 1
        bounds = {"most_px": most, "least_px": min(most, self.least_px), "most_tiles": tiles}
        return SplitArea.model_validate({**self.model_dump(), **bounds})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the grid that an image is cut into, if it is large, and the size that all of it is scaled to."""
        whole = self._scaled(width_px, height_px)
        if self.most_tiles == 1 or not self._is_large(width_px, height_px):
            return TileLayout(whole_px=whole)
        grid = self._tiles.layout(width_px, height_px)
        return TileLayout(rows=grid.rows, cols=grid.cols, whole_px=whole)

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the tiles row by row, then the whole image."""
        layout = self.layout(*image.size)
        height, width = layout.whole_px or self.tile_size_px
        cut = self._tiles.tiles(image, resample)[:-1] if layout.rows else []
        return [*cut, resized(image, (width, height), resample)]

    @property
    def _tiles(self) -> NearestGrid:
        return NearestGrid(
            height_px=self.tile_px, width_px=self.tile_px, least_tiles=self.least_tiles, most_tiles=self.most_tiles
        )

    def _is_large(self, width_px: int, height_px: int) -> bool:
        step, least = self.step_px, self.patch_px
        height, width = (max(least, round(side / step) * step) for side in (height_px, width_px))
        return height * width > self.most_px * self.tolerance

    def _scaled(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (height, width), each rounded to whole steps, then both scaled where the area is out of bounds."""
        step, sides = self.step_px, (height_px, width_px)
        height, width = (max(step, round(side / step) * step) for side in sides)
        if height * width > self.most_px:
            shrink = math.sqrt(height_px * width_px / self.most_px)
            height, width = (max(step, math.floor(side / shrink / step) * step) for side in sides)
        elif height * width < self.least_px:
            grow = math.sqrt(self.least_px / (height_px * width_px))
            height, width = (math.ceil(side * grow / step) * step for side in sides)
        return height, width
