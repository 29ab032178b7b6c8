"""The centre of an image that was stretched."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from pydantic import model_validator

from bundle.image.geometry import EdgePx, Geometry, resized
from bundle.image.layout import TileLayout


class StretchedCrop(Geometry):
    """Stretch the image to one size, then cut out the centre (EfficientNet, as ALIGN uses it).

    Attributes:
        stretched_px: (height, width) before the cut.
        height_px: Of the cut.
        width_px: Of the cut.
    """

    kind: Literal["stretched crop"] = "stretched crop"
    stretched_px: tuple[EdgePx, EdgePx]
    height_px: EdgePx
    width_px: EdgePx

    @model_validator(mode="after")
    def _check_cut(self) -> StretchedCrop:
        if self.height_px > self.stretched_px[0] or self.width_px > self.stretched_px[1]:
            raise ValueError(f"{self.height_px} x {self.width_px} pixels cannot be cut out of {self.stretched_px}")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.height_px, self.width_px

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut: never into several."""
        return TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the centre of the stretched image."""
        height, width = self.stretched_px
        left, top = (width - self.width_px) // 2, (height - self.height_px) // 2
        stretched = resized(image, (width, height), resample)
        return [stretched.crop((left, top, left + self.width_px, top + self.height_px))]
