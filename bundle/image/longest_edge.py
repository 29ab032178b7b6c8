"""An image that keeps its shape and is never enlarged: scaled down to a longest side, then up to whole steps."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from bundle.errors import ImageError
from bundle.image.geometry import EdgePx, Sides
from bundle.image.keeps_shape import KeepsShape
from bundle.image.layout import TileLayout

_USUAL_SIDE_PX = 448
"""Of a frame, and of what a server runs first; rounded to whole steps, within the bound."""


class LongestEdge(KeepsShape):
    """Scale both sides down to a bound where one exceeds it, and stretch both to whole steps (Pixtral).

    Attributes:
        longest_px: Of the longer side, before it is stretched to whole steps.
        step_px: Both sides are multiples of it.
    """

    kind: Literal["longest-edge"] = "longest-edge"
    longest_px: EdgePx
    step_px: int = Field(gt=0, le=512)

    @model_validator(mode="after")
    def _check_bounds(self) -> LongestEdge:
        if self.step_px > self.longest_px:
            raise ValueError(f"sides of {self.longest_px} px at most in steps of {self.step_px} px")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a usual image, a square."""
        side = self._stretched(min(_USUAL_SIDE_PX, self.longest_px))
        return side, side

    @property
    def sides(self) -> Sides:
        """From a step to the bound in whole steps."""
        longest = self._stretched(self.longest_px)
        return Sides(self.step_px, longest, longest, self.step_px)

    def within(self, most_px: int) -> LongestEdge:
        """Return the geometry with images of so many pixels at most.

        Raises:
            ValueError: That is less than a step's square.
        """
        if self._stretched(self.longest_px) ** 2 <= most_px:
            return self
        longest = math.isqrt(most_px) // self.step_px * self.step_px
        if longest < self.step_px:
            raise ValueError(f"the smallest images of the model are {self.step_px} x {self.step_px} pixels")
        return LongestEdge(longest_px=longest, step_px=self.step_px)

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the size that an image is scaled to; it is never cut.

        Raises:
            ImageError: It is so narrow that nothing would be left of its shorter side.
        """
        # floats in the order in which the processor has them (`get_resize_output_image_size` of Pixtral's)
        ratio = max(height_px / self.longest_px, width_px / self.longest_px)
        height, width = height_px, width_px
        if ratio > 1:
            height, width = math.floor(height_px / ratio), math.floor(width_px / ratio)
        if not min(height, width):
            raise ImageError(
                f"the image is {width_px} x {height_px} pixels; with its long side at {self.longest_px}, less than a "
                "pixel is left of the other. Crop it."
            )
        return TileLayout(whole_px=(self._stretched(height), self._stretched(width)))

    def _stretched(self, side_px: int) -> int:
        """Return a side in whole steps."""
        return -(-side_px // self.step_px) * self.step_px
