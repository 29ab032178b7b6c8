"""The centre of an image."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from pydantic import Field

from bundle.image.geometry import EdgePx, Geometry, resized
from bundle.image.layout import TileLayout

_LARGEST_SHORT_EDGE_PX = 1024
"""Before a centre is cut out: of an image of 200:1, 600 MB of pixels."""


class Cropped(Geometry):
    """Scale the shortest edge to a length, then cut out the centre, black outside the image (CLIP, LLaVA-1.5).

    Attributes:
        shortest_edge_px: After scaling.
        height_px: Of the cut.
        width_px: Of the cut.
        rounds_half_to_even: Where as many pixels do not stand on both sides, the half one is rounded to the even
            number, not down (torchvision, `center_crop`, as open_clip uses it).
    """

    kind: Literal["cropped"] = "cropped"
    shortest_edge_px: int = Field(gt=0, le=_LARGEST_SHORT_EDGE_PX)
    height_px: EdgePx
    width_px: EdgePx
    rounds_half_to_even: bool = False

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.height_px, self.width_px

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut: never."""
        return TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the centre of the scaled image."""
        scaled = resized(image, self._scaled_size(*image.size), resample)
        left, top = self._half(scaled.width - self.width_px), self._half(scaled.height - self.height_px)
        return [scaled.crop((left, top, left + self.width_px, top + self.height_px))]

    def _half(self, num_px: int) -> int:
        return round(num_px / 2) if self.rounds_half_to_even else num_px // 2

    def _scaled_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        short, long = sorted((width_px, height_px))
        scaled_long = int(self.shortest_edge_px * long / short)
        if width_px <= height_px:
            return self.shortest_edge_px, scaled_long
        return scaled_long, self.shortest_edge_px
