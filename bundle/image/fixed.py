"""Every image stretched to one size."""

from __future__ import annotations

from typing import Literal

from PIL import Image

from bundle.image.geometry import EdgePx, Geometry, resized
from bundle.image.layout import TileLayout


class Fixed(Geometry):
    """Stretch the image to one size (SigLIP).

    Attributes:
        height_px: Of the encoder's input.
        width_px: Of the encoder's input.
    """

    kind: Literal["fixed"] = "fixed"
    height_px: EdgePx
    width_px: EdgePx

    @property
    def places_boxes(self) -> bool:
        """True: what is stretched keeps its shares."""
        return True

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.height_px, self.width_px

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut: never."""
        return TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the stretched image."""
        return [resized(image, (self.width_px, self.height_px), resample)]
