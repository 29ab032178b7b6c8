"""A page scaled to fit one size that is no square, in the middle of black."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from pydantic import Field

from bundle.image.geometry import EdgePx, Geometry, resized
from bundle.image.layout import TileLayout

_LARGEST_FIRST_PX = 1 << 26
"""Area of an image whose short side was scaled, 200 MB of bytes; what would be larger is scaled once, to its last size,
and differs from the reference by the second filter."""


class Thumbnail(Geometry):
    """Scale the short side to the shorter one of a page, then down to what fits into it (Donut).

    Attributes:
        height_px: Of the page.
        width_px: Of the page.
        turns: An image that is wide where the page is tall, or the reverse, is turned clockwise first.
    """

    kind: Literal["thumbnail"] = "thumbnail"
    height_px: EdgePx
    width_px: EdgePx
    turns: bool = Field(default=False)

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.height_px, self.width_px

    @property
    def is_cut_at_once(self) -> bool:
        """True: a small image grows."""
        return True

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut: never."""
        return TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the page."""
        if self.turns and self._lies(*image.size):
            image = image.transpose(Image.Transpose.ROTATE_270)
        first = self._first_size(*image.size)
        last = self._last_size(*first)
        if first[0] * first[1] <= _LARGEST_FIRST_PX:
            image = resized(image, first, resample)
        fitted = resized(image, last, resample)
        if fitted.size == (self.width_px, self.height_px):
            return [fitted]
        page = Image.new("RGB", (self.width_px, self.height_px))
        page.paste(fitted, ((self.width_px - last[0]) // 2, (self.height_px - last[1]) // 2))
        return [page]

    def _lies(self, width_px: int, height_px: int) -> bool:
        if self.width_px < self.height_px:
            return width_px > height_px
        return self.width_px > self.height_px and width_px < height_px

    def _first_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (width, height) with the short side scaled."""
        short = min(self.width_px, self.height_px)
        if width_px <= height_px:
            return short, int(short * height_px / width_px)
        return int(short * width_px / height_px), short

    def _last_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (width, height) that fit into the page, in the reference's order of roundings."""
        width, height = min(width_px, self.width_px), min(height_px, self.height_px)
        if (width, height) == (width_px, height_px):
            return width, height
        if height_px > width_px:
            return max(int(width_px * height / height_px), 1), height
        return width, max(int(height_px * width / width_px), 1)
