"""What geometries have in common under which an image keeps its shape."""

from __future__ import annotations

from PIL import Image

from bundle.image.fixed import Fixed
from bundle.image.geometry import Geometry, resized


class KeepsShape(Geometry):
    """An image becomes one tile of its own shape, unless a subclass cuts it; a frame is a square, and never cut."""

    @property
    def has_one_size(self) -> bool:
        """False: tiles have the shapes of their images."""
        return False

    @property
    def for_frames(self) -> Fixed:
        """`tile_size_px`, a square: all frames of a video take as many tokens."""
        height, width = self.tile_size_px
        return Fixed(height_px=height, width_px=width)

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the scaled image."""
        height, width = self.layout(*image.size).whole_px or self.tile_size_px
        return [resized(image, (width, height), resample)]
