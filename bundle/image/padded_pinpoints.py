"""An image padded into the best of several grids of tiles, and padded to a square once more (DeepSeek-VL2)."""

from __future__ import annotations

from typing import Literal

from PIL import Image, ImageOps
from pydantic import Field, model_validator

from bundle.image.geometry import EdgePx, Geometry, check_canvas
from bundle.image.layout import TileLayout
from bundle.image.padded import Colour
from bundle.image.pinpoints import MOST_GRIDS, Tiles, best_grid


class PaddedPinpoints(Geometry):
    """Scale in shape and pad with one colour, to a grid of tiles and to one tile, as Pillow's `ImageOps.pad` does.

    The grid is chosen as of `Pinpoints`. A grid of one tile is the whole image over again, so that there is one tile.

    Attributes:
        tile_px: Side of a tile.
        grids: (rows, cols) of each, in the checkpoint's order, by which equal ones are told apart.
        colour: Of the padding.
        most_cut: Images that a prompt has at most for each to be cut; among more, each is one tile.
    """

    kind: Literal["padded_pinpoints"] = "padded_pinpoints"
    tile_px: EdgePx
    grids: tuple[tuple[Tiles, Tiles], ...] = Field(min_length=1, max_length=MOST_GRIDS)
    colour: Colour
    most_cut: int = Field(gt=0, le=1 << 16)

    @model_validator(mode="after")
    def _check_canvas(self) -> PaddedPinpoints:
        check_canvas(max(rows * cols for rows, cols in self.grids), self.tile_px)
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.tile_px, self.tile_px

    @property
    def for_frames(self) -> PaddedPinpoints:
        """Never in tiles."""
        return self.among_others

    @property
    def among_others(self) -> PaddedPinpoints:
        """Of one tile."""
        return self if self.grids == ((1, 1),) else self.model_copy(update={"grids": ((1, 1),)})

    @property
    def others_from(self) -> int:
        """More than are cut."""
        return self.most_cut + 1

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the grid of an image of this size."""
        rows, cols = best_grid(self.grids, self.tile_px, width_px, height_px)
        return TileLayout(rows=rows, cols=cols) if rows * cols > 1 else TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the tiles row by row, then the whole image."""
        layout, edge = self.layout(*image.size), self.tile_px
        whole = ImageOps.pad(image, (edge, edge), method=resample, color=self.colour)
        if not layout.rows:
            return [whole]
        grid = ImageOps.pad(image, (layout.cols * edge, layout.rows * edge), method=resample, color=self.colour)
        corners = [(col * edge, row * edge) for row in range(layout.rows) for col in range(layout.cols)]
        return [*(grid.crop((left, top, left + edge, top + edge)) for left, top in corners), whole]
