"""An image scaled into the best of several grids of tiles and padded, and itself once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.cropped import Cropped
from bundle.image.fixed import Fixed
from bundle.image.geometry import EdgePx, Geometry, check_canvas, resized
from bundle.image.layout import TileLayout
from bundle.image.padded import Colour, Padded

MOST_GRIDS = 256
"""Each is tried for every image; published models have 36 at most."""
Tiles: TypeAlias = Annotated[int, Field(gt=0, le=64)]


class Pinpoints(Geometry):
    """Scale into a grid of tiles in shape, pad with black, cut, and add the whole image, stretched (LLaVA-NeXT).

    The grid is the one in which most of the image's pixels are kept, of several such the smallest.

    Attributes:
        tile_px: Edge of a tile.
        grids: (rows, cols) of each, in the checkpoint's order, by which equal ones are told apart.
        colour_among_others: Where a prompt has several images, each is padded to a square of it, and is one tile; None:
            each is cut as it would be alone.
        frames: How a video's frame becomes a tile, where the model has tokens of its own for videos; None: a frame is
            an image.
    """

    kind: Literal["pinpoints"] = "pinpoints"
    tile_px: EdgePx
    grids: tuple[tuple[Tiles, Tiles], ...] = Field(min_length=1, max_length=MOST_GRIDS)
    colour_among_others: Colour | None = None
    frames: Cropped | Fixed | None = Field(default=None, discriminator="kind")

    @model_validator(mode="after")
    def _check_canvas(self) -> Pinpoints:
        check_canvas(max(rows * cols for rows, cols in self.grids), self.tile_px)
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.tile_px, self.tile_px

    @property
    def for_frames(self) -> Fixed:
        """Never in tiles."""
        return Fixed(height_px=self.tile_px, width_px=self.tile_px)

    def of_video(self, num_frames: int, width_px: int, height_px: int) -> Geometry | None:
        """Return how each frame becomes a tile; None: the model takes frames as images alone."""
        return self.frames

    @property
    def among_others(self) -> Geometry:
        """A square of one tile, where the model was trained so."""
        colour = self.colour_among_others
        if colour is None:
            return self
        return Padded(side_px=self.tile_px, colour=colour, scales_first=False, tells_size=True)

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the grid of an image of this size, which its tokens depend on as well."""
        rows, cols = self._grid(width_px, height_px)
        return TileLayout(rows=rows, cols=cols, image_px=(height_px, width_px))

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the tiles row by row, then the whole image."""
        rows, cols = self._grid(*image.size)
        edge = self.tile_px
        grid = _padded(image, (cols * edge, rows * edge), resample)
        corners = [(col * edge, row * edge) for row in range(rows) for col in range(cols)]
        cut = [grid.crop((left, top, left + edge, top + edge)) for left, top in corners]
        return [*cut, resized(image, (edge, edge), resample)]

    def _grid(self, width_px: int, height_px: int) -> tuple[int, int]:
        return best_grid(self.grids, self.tile_px, width_px, height_px)


def best_grid(grids: Sequence[tuple[int, int]], tile_px: int, width_px: int, height_px: int) -> tuple[int, int]:
    """Return (rows, cols) of the grid in which most of an image's pixels are kept, of several such the smallest."""
    best, most_kept, least_wasted = grids[0], 0, math.inf
    for rows, cols in grids:
        height, width = rows * tile_px, cols * tile_px
        scale = min(width / width_px, height / height_px)
        kept = min(int(width_px * scale) * int(height_px * scale), width_px * height_px)
        wasted = height * width - kept
        if kept > most_kept or (kept == most_kept and wasted < least_wasted):
            best, most_kept, least_wasted = (rows, cols), kept, wasted
    return best


def _padded(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Return an image scaled into (width, height), in the middle of black; what is uneven is padded behind it."""
    across, down = size[0] / image.width, size[1] / image.height
    if across < down:
        inner = size[0], min(math.ceil(image.height * across), size[1])
    else:
        inner = min(math.ceil(image.width * down), size[0]), size[1]
    canvas = Image.new("RGB", size)
    canvas.paste(resized(image, inner, resample), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return canvas
