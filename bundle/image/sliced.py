"""An image that keeps its shape at an area of its own; a large one in slices as well, each with as large an area."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.geometry import EdgePx, Sides, check_canvas, resized
from bundle.image.keeps_shape import KeepsShape
from bundle.image.layout import TileLayout

_MOST_SLICES = 256
_NARROWEST = 200
"""Times as long as it is wide, that an image is reckoned with."""


class Sliced(KeepsShape):
    """Scale to the area of a square, in whole steps; beside that, cut a larger image into slices (MiniCPM-V).

    The grid has about as many slices as such squares go into the image, of those numbers the one whose shape is nearest
    to the image's (MiniCPM-V, arXiv 2408.01800, section 3.2). Slices of one image have one size.

    Attributes:
        step_px: Both sides of an image and of a slice are multiples of it: a patch, times the patches that become one
            token.
        tile_px: Edge of the square whose area an image and a slice have, to the rounding of their sides.
        most_slices: Of a grid; 1: no image is cut.
        grows: An image of less than that area is scaled to it; else its sides are rounded to whole steps.
    """

    kind: Literal["sliced"] = "sliced"
    step_px: int = Field(gt=0, le=512)
    tile_px: EdgePx
    most_slices: int = Field(gt=0, le=_MOST_SLICES)
    grows: bool = True

    @model_validator(mode="after")
    def _check_sizes(self) -> Sliced:
        if self.tile_px % self.step_px:
            raise ValueError(f"squares of {self.tile_px} px are no multiple of steps of {self.step_px} px")
        check_canvas(self.most_slices, self.tile_px)
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of the square, and of a frame."""
        return self.tile_px, self.tile_px

    @property
    def sides(self) -> Sides:
        """From a step to what an image has that is 200 times as long as it is wide."""
        longest = math.isqrt(_NARROWEST * self.tile_px**2) // self.step_px * self.step_px + self.step_px
        return Sides(self.step_px, longest, self.tile_px, self.step_px)

    def within(self, most_px: int) -> Sliced:
        """Return the geometry with images of so many pixels at most, their slices among them, to the rounding of sides.

        Raises:
            ValueError: That is less than a step's square.
        """
        edge = min(self.tile_px, math.isqrt(most_px) // self.step_px * self.step_px)
        slices = min(self.most_slices, most_px // max(edge, 1) ** 2 - 1)
        bounds = {"tile_px": edge, "most_slices": max(slices, 1)}
        return Sliced.model_validate({**self.model_dump(), **bounds})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the grid that an image is cut into, if it is large, and the sizes of all of it and of a slice."""
        grid = _grid(width_px, height_px, self.tile_px, self.most_slices)
        if grid is None and not self.grows and width_px * height_px <= self.tile_px**2:
            return TileLayout(whole_px=self._rounded(width_px, height_px))
        if grid is None:
            return TileLayout(whole_px=self._scaled(width_px, height_px))
        rows, cols = grid
        of_slice = self._scaled(
            max(round(width_px / cols) * cols, cols) / cols, max(round(height_px / rows) * rows, rows) / rows
        )
        return TileLayout(rows=rows, cols=cols, whole_px=self._scaled(width_px, height_px), tile_px=of_slice)

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the whole image, then its slices row by row."""
        layout = self.layout(*image.size)
        height, width = layout.whole_px or self.tile_size_px
        whole = resized(image, (width, height), resample)
        if layout.tile_px is None:
            return [whole]
        down, across = layout.tile_px
        grid = resized(image, (layout.cols * across, layout.rows * down), resample)
        corners = [(col * across, row * down) for row in range(layout.rows) for col in range(layout.cols)]
        return [whole, *(grid.crop((left, top, left + across, top + down)) for left, top in corners)]

    def _scaled(self, width_px: float, height_px: float) -> tuple[int, int]:
        """Return (height, width) of the square's area, each rounded to whole steps."""
        ratio = width_px / height_px
        height = int(self.tile_px / math.sqrt(ratio))
        return self._rounded(int(height * ratio), height)

    def _rounded(self, width: int, height: int) -> tuple[int, int]:
        step = self.step_px
        return max(round(height / step) * step, step), max(round(width / step) * step, step)


@lru_cache(maxsize=256)
def _grid(width_px: int, height_px: int, tile_px: int, most_slices: int) -> tuple[int, int] | None:
    """Return (rows, cols); None of an image that is not cut."""
    number = min(math.ceil(width_px * height_px / tile_px**2), most_slices)
    if number <= 1:
        return None
    shape = math.log(width_px / height_px)
    counts = [count for count in (number - 1, number, number + 1) if 1 < count <= most_slices]
    grids = [(rows, count // rows) for count in counts for rows in range(1, count + 1) if count % rows == 0]
    best, least = (1, 1), math.inf
    for rows, cols in grids:
        error = abs(shape - math.log(cols / rows))
        if error < least or (error == least and rows > best[0]):
            best, least = (rows, cols), error
    return best
