"""An image stretched to the fewest tiles that keep nearly all of it in sight, behind itself as a whole."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from PIL import Image
from pydantic import Field

from bundle.image.fixed import Fixed
from bundle.image.geometry import EdgePx, Geometry, resized
from bundle.image.layout import TileLayout

_MOST_TILES = 64
"""Each grid of so many is tried, piece by piece; published models have 9 or 12."""
_ENOUGH = 0.9
"""Of an image's area, kept by pieces that are scaled down to a tile (Ovis, `covering_threshold`)."""


class CoveringGrid(Geometry):
    """Stretch to `cols` x `rows` tiles, cut, and put the whole image before them (Ovis 1.6 and 2).

    An image that becomes one tile is not added again.

    Attributes:
        tile_px: Side of a tile.
        most_tiles: Of a grid; 1: the whole image is the only tile.
    """

    kind: Literal["covering_grid"] = "covering_grid"
    tile_px: EdgePx
    most_tiles: int = Field(gt=0, le=_MOST_TILES)

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
        return TileLayout(rows=rows, cols=cols) if rows * cols > 1 else TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the whole image, then the tiles row by row."""
        layout, edge = self.layout(*image.size), self.tile_px
        whole = resized(image, (edge, edge), resample)
        grid = resized(image, (max(layout.cols, 1) * edge, max(layout.rows, 1) * edge), resample)
        corners = [(col * edge, row * edge) for row in range(layout.rows) for col in range(layout.cols)]
        return [whole, *(grid.crop((left, top, left + edge, top + edge)) for left, top in corners)]


@lru_cache(maxsize=256)
def _grid(width_px: int, height_px: int, tile_px: int, most_tiles: int) -> tuple[int, int]:
    """Return (cols, rows) of the fewest tiles that keep enough of the image, or else of those that keep most.

    As in the processor of transformers, a grid is judged by as many rows as it then has columns, and the reverse.
    """
    sides = range(1, most_tiles + 1)
    grids = sorted(((a, b) for a in sides for b in sides if a * b <= most_tiles), key=lambda grid: grid[0] * grid[1])
    kept = {(a, b): _kept(width_px, height_px, a, b, tile_px) for a, b in grids}
    enough = [grid for grid in grids if kept[grid] > _ENOUGH]
    if enough:
        return min(enough, key=lambda grid: (grid[0] * grid[1], -kept[grid]))
    return min(grids, key=lambda grid: (-kept[grid], grid[0] * grid[1]))


def _kept(width_px: int, height_px: int, rows: int, cols: int, tile_px: int) -> float:
    """Return the share of an image's area that its pieces have once none is longer than a tile."""
    heights, widths = _pieces(height_px, rows), _pieces(width_px, cols)
    areas = [_scaled_area(height, width, tile_px) for height in heights for width in widths]
    return sum(areas) / (width_px * height_px)


def _pieces(size_px: int, count: int) -> list[int]:
    """Return sizes of equal pieces, the last of which has what is left over."""
    size = size_px // count
    return [*[size] * (count - 1), size_px - size * (count - 1)]


def _scaled_area(height_px: int, width_px: int, tile_px: int) -> float:
    short, long = sorted((height_px, width_px))
    return short / long * tile_px * tile_px if long > tile_px else float(long * short)
