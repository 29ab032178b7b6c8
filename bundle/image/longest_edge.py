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
        scaling: Of the longer side: "down" to the bound where it exceeds it (Pixtral); "in steps": stretched to whole
            steps first, and the other side is scaled with it (SOLO); "always" to the bound (EVE).
    """

    kind: Literal["longest-edge"] = "longest-edge"
    longest_px: EdgePx
    step_px: int = Field(gt=0, le=512)
    scaling: Literal["down", "in steps", "always"] = "down"

    @model_validator(mode="after")
    def _check_bounds(self) -> LongestEdge:
        if self.scaling != "down" and self.longest_px % self.step_px:
            raise ValueError(f"sides of {self.longest_px} px at most are no whole steps of {self.step_px} px")
        if self.step_px > self.longest_px:
            raise ValueError(f"sides of {self.longest_px} px at most in steps of {self.step_px} px")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a usual image, a square."""
        usual = self.longest_px if self.scaling == "always" else min(_USUAL_SIDE_PX, self.longest_px)
        side = self._stretched(usual)
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
        return LongestEdge(longest_px=longest, step_px=self.step_px, scaling=self.scaling)

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the size that an image is scaled to; it is never cut.

        Raises:
            ImageError: It is so narrow that nothing would be left of its shorter side.
        """
        height, width = self._scaled(height_px, width_px)
        if not min(height, width):
            raise ImageError(
                f"the image is {width_px} x {height_px} pixels; with its long side at {self.longest_px}, less than a "
                "pixel is left of the other. Crop it."
            )
        return TileLayout(whole_px=(self._stretched(height), self._stretched(width)))

    def _scaled(self, *sides_px: int) -> list[int]:
        """Return sides before what is left is stretched, of floats in the order in which processors have them."""
        long = max(sides_px)
        if self.scaling == "always":  # `compute_basehw` of EVE's
            return [math.ceil(self.longest_px * side / long / self.step_px) * self.step_px for side in sides_px]
        if self.scaling == "in steps":  # `get_resize_output_image_size` of SOLO's
            longest = min(self._stretched(long), self.longest_px)
            return [longest if side == long else int(longest * side / long) for side in sides_px]
        ratio = max(side / self.longest_px for side in sides_px)  # the same of Pixtral's
        return [math.floor(side / ratio) if ratio > 1 else side for side in sides_px]

    def _stretched(self, side_px: int) -> int:
        """Return a side in whole steps."""
        return -(-side_px // self.step_px) * self.step_px
