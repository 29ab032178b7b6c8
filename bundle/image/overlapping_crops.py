"""An image once as a crop, and once stretched to a canvas of crops that overlap, in one piece (Molmo, Molmo 2)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from bundle.image.geometry import EdgePx, Geometry, Sides, check_canvas
from bundle.image.layout import TileLayout
from bundle.image.unsmoothed import unsmoothed

_MOST_CROPS = 256
_TOO_SMALL = np.float32(1e10)
"""In the place of a scale that makes an image smaller, where another enlarges it (transformers, `select_tiling`)."""


class OverlappingCrops(Geometry):
    """As `Molmo2ImageProcessor`: crops of a canvas share their margins, and nothing is filtered when it is scaled.

    The canvas stays one piece, whose encoder cuts it. Of the layout, the one tile of certain size is the whole image as
    a crop, which comes first, and `whole_px` is the canvas's, of one crop at least.

    Attributes:
        crop_px: Edge of a crop.
        window_px: From one crop to the next: what is not margin.
        most_crops: Of a canvas.
        takes_videos: Frames of a video are one crop each, which the model does not take for images.
    """

    kind: Literal["overlapping_crops"] = "overlapping_crops"
    crop_px: EdgePx
    window_px: EdgePx
    most_crops: int = Field(gt=0, le=_MOST_CROPS)
    takes_videos: bool = False

    @model_validator(mode="after")
    def _check_crops(self) -> OverlappingCrops:
        if self.window_px > self.crop_px:
            raise ValueError(f"crops of {self.crop_px} px every {self.window_px} px do not meet")
        check_canvas(self.most_crops, self.crop_px)
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a crop, and of a frame."""
        return self.crop_px, self.crop_px

    @property
    def has_one_size(self) -> bool:
        """False: a canvas has the shape of its image."""
        return False

    @property
    def sides(self) -> Sides:
        """From one crop to a row of all."""
        most = self.most_crops
        return Sides(
            self.crop_px, self._side_px(most), self._side_px(math.isqrt(most)), math.gcd(self.crop_px, self.window_px)
        )

    @property
    def for_frames(self) -> WholeCrop:
        """One crop, whatever the frame's size."""
        return WholeCrop(crop_px=self.crop_px)

    def of_video(self, num_frames: int, width_px: int, height_px: int) -> WholeCrop | None:
        """Return the geometry of each frame of a video; None: the model takes frames as images alone."""
        return WholeCrop(crop_px=self.crop_px) if self.takes_videos else None

    def within(self, most_px: int) -> OverlappingCrops:
        """Return the geometry with canvases of so many pixels at most.

        Raises:
            ValueError: That is less than a crop.
        """
        most = min(self.most_crops, most_px // self.crop_px**2)
        if not most:
            raise ValueError(f"a crop is {self.crop_px} x {self.crop_px} pixels")
        return self.model_copy(update={"most_crops": most})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the canvas's size, behind one crop."""
        rows, cols = self._grid(width_px, height_px)
        return TileLayout(rows=1, cols=1, whole_px=(self._side_px(rows), self._side_px(cols)))

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the whole image as a crop, then the canvas; `resample` is a filter, and there is none."""
        height, width = self.layout(*image.size).whole_px or self.tile_size_px
        return [unsmoothed(image, (self.crop_px, self.crop_px)), unsmoothed(image, (width, height))]

    def _side_px(self, num_crops: int) -> int:
        """Return the side of a canvas of so many crops along it."""
        return num_crops * self.window_px + self.crop_px - self.window_px

    def _grid(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (rows, cols): the smallest scale that enlarges the image within its margins, else the largest one.

        Margins count as the processor counts them, from a side that may then be none or less.
        """
        most, margin_px = self.most_crops, self.crop_px - self.window_px
        grids = [(rows, cols) for rows in range(1, most + 1) for cols in range(1, most + 1) if rows * cols <= most]
        grids.sort(key=lambda grid: (grid[0] * grid[1], grid[0]))
        inner = np.array([height_px - margin_px, width_px - margin_px], np.float32)
        with np.errstate(divide="ignore"):
            scales = (np.array(grids, np.float32) * np.float32(self.window_px) / inner).min(axis=1)
        if (scales < 1).all():
            return grids[int(scales.argmax())]
        return grids[int(np.where(scales < 1, _TOO_SMALL, scales).argmin())]


class WholeCrop(Geometry):
    """The image stretched to one crop, and nothing filtered.

    Attributes:
        crop_px: Its edge.
    """

    kind: Literal["whole_crop"] = "whole_crop"
    crop_px: EdgePx

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of the crop."""
        return self.crop_px, self.crop_px

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut: never."""
        return TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the crop."""
        return [unsmoothed(image, (self.crop_px, self.crop_px))]
