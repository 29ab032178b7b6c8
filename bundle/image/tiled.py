"""An image cut into square tiles, and itself once more."""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.geometry import EdgePx, Geometry, resized
from bundle.image.layout import TileLayout

_TILED_LONGEST_EDGE_PX = 4096
"""Upper bound on either edge before tiling, fixed in the Idefics3 processor whatever its configuration says."""
_MOST_TILES_A_SIDE = 64


class Tiled(Geometry):
    """Scale the longest edge, then cut into square tiles and add the whole image as one more (Idefics3, SmolVLM).

    Attributes:
        longest_edge_px: After the first scaling.
        tile_px: Edge of a tile.
        splits: False: no cutting, the whole image is the only tile.
    """

    kind: Literal["tiled"] = "tiled"
    longest_edge_px: int = Field(gt=0, le=1 << 20)
    tile_px: EdgePx
    splits: bool

    @model_validator(mode="after")
    def _check_tiles(self) -> Tiled:
        longest = min(self.longest_edge_px, _TILED_LONGEST_EDGE_PX)
        if self.splits and longest > _MOST_TILES_A_SIDE * self.tile_px:
            raise ValueError(f"tiles of {self.tile_px} px out of {longest}; at most {_MOST_TILES_A_SIDE} on a side")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.tile_px, self.tile_px

    @property
    def for_frames(self) -> Tiled:
        """Never in tiles.

        That is SmolVLM's own video preprocessing where `video_sampling.video_size` is the tile's edge, as its published
        checkpoints have it: the longest edge is scaled to a tile's, then all to a square.
        """
        return Tiled(longest_edge_px=self.tile_px, tile_px=self.tile_px, splits=False)

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut."""
        width, height = self._grid_size(*self._scaled_size(width_px, height_px))
        if not self.splits or (width == self.tile_px and height == self.tile_px):
            return TileLayout()
        return TileLayout(rows=height // self.tile_px, cols=width // self.tile_px)

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the tiles row by row, then the whole image."""
        layout = self.layout(*image.size)
        edge = self.tile_px
        scaled = resized(image, self._scaled_size(*image.size), resample)
        if layout.rows == 0:
            return [resized(scaled, (edge, edge), resample)]
        grid = resized(scaled, (layout.cols * edge, layout.rows * edge), resample)
        corners = [(col * edge, row * edge) for row in range(layout.rows) for col in range(layout.cols)]
        cut = [grid.crop((left, top, left + edge, top + edge)) for left, top in corners]
        return [*cut, resized(grid, (edge, edge), resample)]

    def _scaled_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (width, height) after the first scaling: the shorter edge is even, and at least 1."""
        limit = self.longest_edge_px
        is_wide = width_px >= height_px
        ratio = width_px / height_px
        short = int(limit / ratio) if is_wide else int(limit * ratio)
        short = max(short + short % 2, 1)
        width, height = (limit, short) if is_wide else (short, limit)
        if limit <= _TILED_LONGEST_EDGE_PX:
            return width, height
        return _bounded(width, height, _TILED_LONGEST_EDGE_PX)

    def _grid_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (width, height) rounded up to whole tiles, the longer edge first, as the reference does."""
        ratio = width_px / height_px
        if width_px >= height_px:
            width = self._whole_tiles(width_px)
            return width, self._whole_tiles(int(width / ratio))
        height = self._whole_tiles(height_px)
        return self._whole_tiles(int(height * ratio)), height

    def _whole_tiles(self, edge_px: int) -> int:
        return max(math.ceil(edge_px / self.tile_px), 1) * self.tile_px


def _bounded(width_px: int, height_px: int, limit_px: int) -> tuple[int, int]:
    """Return (width, height) scaled down until the longest edge is `limit_px`."""
    ratio = width_px / height_px
    if width_px >= height_px:
        return limit_px, max(int(limit_px / ratio), 1)
    return max(int(limit_px * ratio), 1), limit_px
