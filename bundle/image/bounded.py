"""An image whose sides lie between two bounds, and where a model wants it its four quarters as well."""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.errors import ImageError
from bundle.image.geometry import EdgePx, Sides, resized
from bundle.image.keeps_shape import KeepsShape
from bundle.image.layout import TileLayout

_USUAL_SIDE_PX = 448
"""Of a frame, and of what a server runs first; within the bounds."""


class Bounded(KeepsShape):
    """Scale the longer side down to a bound in shape, then stretch what is shorter than another (Idefics2).

    Attributes:
        shortest_px: Least length of a side.
        longest_px: Largest length of a side.
        splits: Its four quarters are cut out before anything is scaled, and each treated as an image of its own; the
            whole follows them.
    """

    kind: Literal["bounded"] = "bounded"
    shortest_px: EdgePx
    longest_px: EdgePx
    splits: bool = Field(default=False)

    @model_validator(mode="after")
    def _check_bounds(self) -> Bounded:
        if self.shortest_px > self.longest_px:
            raise ValueError(f"sides from {self.shortest_px} to {self.longest_px} px")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a usual image, a square."""
        side = min(max(_USUAL_SIDE_PX, self.shortest_px), self.longest_px)
        return side, side

    @property
    def sides(self) -> Sides:
        """Between the bounds."""
        return Sides(self.shortest_px, self.longest_px, self.longest_px, 1)

    def within(self, most_px: int) -> Bounded:
        """Return the geometry with images of so many pixels at most.

        Raises:
            ValueError: None is so small.
        """
        longest = min(math.isqrt(most_px), self.longest_px)
        shortest = min(longest, self.shortest_px)
        return Bounded.model_validate({**self.model_dump(), "longest_px": longest, "shortest_px": shortest})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the size of the whole image, and whether its quarters stand before it.

        Raises:
            ImageError: It is too small to be quartered.
        """
        if self.splits and min(width_px, height_px) < 2:
            raise ImageError(
                f"the image is {width_px} x {height_px} pixels; the model sees its quarters as well, which takes 2 on "
                "each side. Enlarge it."
            )
        parts = 2 * self.splits
        return TileLayout(rows=parts, cols=parts, whole_px=self._scaled_size(width_px, height_px))

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the quarters row by row where there are any, then the whole image."""
        self.layout(*image.size)
        images = [*(_quarters(image) if self.splits else ()), image]
        return [resized(each, self._scaled_size(*each.size)[::-1], resample) for each in images]

    def _scaled_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (height, width)."""
        ratio, longest = width_px / height_px, self.longest_px
        if width_px >= height_px and width_px > longest:
            width_px, height_px = longest, int(longest / ratio)
        elif height_px > width_px and height_px > longest:
            width_px, height_px = int(longest * ratio), longest
        return max(height_px, self.shortest_px), max(width_px, self.shortest_px)


def _quarters(image: Image.Image) -> list[Image.Image]:
    width, height = image.size
    across, down = width // 2, height // 2
    corners = [(0, 0, across, down), (across, 0, width, down), (0, down, across, height), (across, down, width, height)]
    return [image.crop(corner) for corner in corners]
