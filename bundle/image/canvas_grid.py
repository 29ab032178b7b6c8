"""An image stretched to the largest grid of tiles that it is scaled up to in shape, behind itself as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.fixed import Fixed
from bundle.image.geometry import EdgePx, Geometry, check_canvas, resized
from bundle.image.layout import TileLayout

_MOST_TILES = 256
"""Every grid of so many is tried for an image; published models have 36."""


class CanvasGrid(Geometry):
    """Stretch to `cols` x `rows` tiles, cut, and put the whole image before them (Perception LM, as Llama 3's vision).

    Of grids that an image fits into, the one in which it could be shown largest; where it fits into none, the one whose
    shape is nearest and no further from a square. An image that becomes one tile is shown twice.

    Attributes:
        tile_px: Side of a tile.
        most_tiles: Of a grid.
    """

    kind: Literal["canvas_grid"] = "canvas_grid"
    tile_px: EdgePx
    most_tiles: int = Field(gt=0, le=_MOST_TILES)

    @model_validator(mode="after")
    def _check_canvas(self) -> CanvasGrid:
        check_canvas(self.most_tiles, self.tile_px)
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
        cols, rows = _grid(width_px, height_px, self.tile_px, self.most_tiles)
        return TileLayout(rows=rows, cols=cols)

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the whole image, then the tiles row by row."""
        layout, edge = self.layout(*image.size), self.tile_px
        grid = resized(image, (layout.cols * edge, layout.rows * edge), resample)
        corners = [(col * edge, row * edge) for row in range(layout.rows) for col in range(layout.cols)]
        cut = [grid.crop((left, top, left + edge, top + edge)) for left, top in corners]
        return [resized(image, (edge, edge), resample), *cut]


@lru_cache(maxsize=256)
def _grid(width_px: int, height_px: int, tile_px: int, most_tiles: int) -> tuple[int, int]:
    """Return (cols, rows)."""
    best, longest = None, 0.0
    for cols, rows in _grids(most_tiles):
        if cols * tile_px < width_px or rows * tile_px < height_px:
            continue
        short = _short_side(width_px, height_px, cols * tile_px, rows * tile_px)
        if best is None or short >= longest:
            best, longest = (cols, rows), short
    return best or _nearest(width_px / height_px, most_tiles)


def _short_side(width_px: int, height_px: int, canvas_width_px: int, canvas_height_px: int) -> float:
    """Return the shorter side of an image that is scaled into a canvas, whole pixels of what is not its longer one."""
    ratio = width_px / height_px
    scale = min(canvas_width_px / width_px, canvas_height_px / height_px)
    if ratio > 1.0:
        return math.floor(scale * width_px / ratio)
    # a square's height is compared, which is not rounded
    return math.floor(scale * height_px * ratio) if ratio < 1.0 else scale * height_px


def _nearest(ratio: float, most_tiles: int) -> tuple[int, int]:
    """Return the grid of most tiles a side whose shape is nearest to a ratio, of those that are less long."""
    grids = list(_grids(most_tiles))
    if ratio >= 1:
        nearest = min((cols / rows for cols, rows in grids if cols / rows <= ratio), key=lambda one: abs(one - ratio))
    else:
        nearest = min(
            (cols / rows for cols, rows in grids if cols / rows > ratio), key=lambda one: abs(1 / one - 1 / ratio)
        )
    of_shape = [grid for grid in grids if grid[0] / grid[1] == nearest]
    return max(of_shape, key=lambda grid: grid[0] if ratio >= 1 else grid[1])


def _grids(most_tiles: int) -> Iterator[tuple[int, int]]:
    """Yield every (cols, rows) of so many tiles; those of one shape together, larger ones first."""
    by_shape: dict[float, list[tuple[int, int]]] = {}
    for count in range(most_tiles, 0, -1):
        for cols in range(1, count + 1):
            if count % cols == 0:
                by_shape.setdefault(cols / (count // cols), []).append((cols, count // cols))
    for grids in by_shape.values():
        yield from grids
