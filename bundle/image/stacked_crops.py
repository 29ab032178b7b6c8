"""An image as a whole, and below it at the size of several squares that overlap, in one canvas (Moondream 2)."""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.geometry import EdgePx, Geometry, Sides, check_canvas, resized
from bundle.image.layout import TileLayout

_MOST_CROPS = 256


class StackedCrops(Geometry):
    """A canvas: at its top left the whole image as one crop, below it the image scaled to so many crops.

    Crops of a picture lie `crop_px - 2 * margin_px` apart, so that neighbours share two margins; whoever reads the
    canvas cuts them, and finds their number in its shape. Beside the whole image the canvas is black.
    Which crops, as `select_tiling` of the authors' `image_crops.py` says: the most that keep the image's shape; one of
    an image that is little larger than a crop in one direction, and more than `most_crops` of very narrow ones.

    Attributes:
        crop_px: Side of a crop.
        margin_px: Half of what neighbours share.
        most_crops: Of an image; 0: the picture is always one crop (a video's frame).
    """

    kind: Literal["stacked_crops"] = "stacked_crops"
    crop_px: EdgePx
    margin_px: int = Field(ge=0, le=2048)
    most_crops: int = Field(ge=0, le=_MOST_CROPS)

    @model_validator(mode="after")
    def _check_crops(self) -> StackedCrops:
        if self._window_px <= 0:
            raise ValueError(f"margins of {self.margin_px} px leave nothing of crops of {self.crop_px} px")
        check_canvas(self.most_crops + 1, self.crop_px)
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of the canvas of one crop."""
        return 2 * self.crop_px, self.crop_px

    @property
    def has_one_size(self) -> bool:
        """False: a picture has the shape of its image."""
        return False

    @property
    def sides(self) -> Sides:
        """From one crop, as wide as it is, to all in one column, below the whole image."""
        crop, window, edges = self.crop_px, self._window_px, 2 * self.margin_px
        most = max(self.most_crops, 1)
        square = crop + math.isqrt(most) * window + edges
        return Sides(crop, crop + most * window + edges, square, math.gcd(window, edges, crop + edges))

    @property
    def for_frames(self) -> StackedCrops:
        """Of one crop."""
        return self.model_copy(update={"most_crops": 0})

    def within(self, most_px: int) -> StackedCrops:
        """Return the geometry with pictures of so many pixels at most, of very narrow images perhaps more.

        Raises:
            ValueError: That is less than a crop.
        """
        most = min(self.most_crops, most_px // self.crop_px**2)
        if not most:
            raise ValueError(f"a crop is {self.crop_px} x {self.crop_px} pixels")
        return self.model_copy(update={"most_crops": most})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the canvas's size."""
        height, width = self._picture(width_px, height_px)
        return TileLayout(whole_px=(self.crop_px + height, width))

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the canvas."""
        height, width = self._picture(*image.size)
        canvas = Image.new("RGB", (width, self.crop_px + height))
        canvas.paste(resized(image, (self.crop_px, self.crop_px), resample), (0, 0))
        canvas.paste(resized(image, (width, height), resample), (0, self.crop_px))
        return [canvas]

    @property
    def _window_px(self) -> int:
        """From one crop to the next."""
        return self.crop_px - 2 * self.margin_px

    def _picture(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (height, width) of the image scaled to its crops."""
        edges, window = 2 * self.margin_px, self._window_px
        rows, cols = _grid(height_px - edges, width_px - edges, window, self.most_crops)
        return rows * window + edges, cols * window + edges


def _grid(height_px: int, width_px: int, window_px: int, most: int) -> tuple[int, int]:
    """Return rows and columns of crops for what lies between the outer margins of an image."""
    if not most or height_px <= window_px or width_px <= window_px:
        return 1, 1
    least_rows, least_cols = math.ceil(height_px / window_px), math.ceil(width_px / window_px)
    if least_rows * least_cols > most:
        share = math.sqrt(most / (least_rows * least_cols))
        return max(1, math.floor(least_rows * share)), max(1, math.floor(least_cols * share))
    rows = max(math.floor(math.sqrt(most * height_px / width_px)), least_rows)
    cols = max(math.floor(math.sqrt(most * width_px / height_px)), least_cols)
    if rows * cols > most:
        if cols > rows:
            cols = most // rows
        else:
            rows = most // cols
    return max(1, rows), max(1, cols)
