"""An image stretched to one size, and a long one in crops beside it (Gemma 3's pan and scan)."""

from __future__ import annotations

from math import ceil, floor
from typing import Literal

from PIL import Image
from pydantic import Field

from bundle.image.fixed import Fixed
from bundle.image.geometry import EdgePx, Geometry, resized
from bundle.image.layout import TileLayout

_MOST_CROPS = 256


class PanAndScan(Geometry):
    """Cut what is much longer than wide, or wider than long, along its longer side (arXiv 2503.19786, section 2.1).

    Every crop and the whole image are stretched to one size.

    Attributes:
        height_px: Of the encoder's input.
        width_px: Of the encoder's input.
        least_crop_px: A crop's shorter side; an image whose crops were smaller is not cut.
        most_crops: Of an image.
        least_ratio: Of the longer side to the shorter, from which on images are cut.
    """

    kind: Literal["pan_and_scan"] = "pan_and_scan"
    height_px: EdgePx
    width_px: EdgePx
    least_crop_px: int = Field(gt=0, le=1 << 16)
    most_crops: int = Field(ge=2, le=_MOST_CROPS)
    least_ratio: float = Field(ge=1)

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.height_px, self.width_px

    @property
    def for_frames(self) -> Fixed:
        """Never in crops."""
        return Fixed(height_px=self.height_px, width_px=self.width_px)

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut; crops are one row, or one column."""
        num_crops = self._num_crops(width_px, height_px)
        if not num_crops:
            return TileLayout()
        rows, cols = (1, num_crops) if width_px >= height_px else (num_crops, 1)
        return TileLayout(rows=rows, cols=cols, image_px=(height_px, width_px))

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the crops, then the whole image, all stretched."""
        layout, size = self.layout(*image.size), (self.width_px, self.height_px)
        whole = resized(image, size, resample)
        if not layout.rows:
            return [whole]
        width, height = ceil(image.width / layout.cols), ceil(image.height / layout.rows)
        corners = [(col * width, row * height) for row in range(layout.rows) for col in range(layout.cols)]
        crops = [
            image.crop((left, top, min(left + width, image.width), min(top + height, image.height)))
            for left, top in corners
        ]
        return [*(resized(crop, size, resample) for crop in crops), whole]

    def _num_crops(self, width_px: int, height_px: int) -> int:
        """Return how many crops there are of an image; 0 where it stays whole.

        The arithmetic is transformers' (`Gemma3ImageProcessor.pan_and_scan`), its rounding of halves among it.
        """
        longer, shorter = max(width_px, height_px), min(width_px, height_px)
        if longer / shorter < self.least_ratio:
            return 0
        wanted = min(floor(longer / shorter + 0.5), longer // self.least_crop_px)
        num_crops = min(max(wanted, 2), self.most_crops)
        return num_crops if min(ceil(longer / num_crops), shorter) >= self.least_crop_px else 0
