"""An image that keeps its shape and is never enlarged: shrunk to fit a frame, then padded to whole patches (Fuyu)."""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.errors import ImageError
from bundle.image.fixed import Fixed
from bundle.image.geometry import EdgePx, Geometry, Sides, resized
from bundle.image.layout import TileLayout
from bundle.image.padded import Colour

_USUAL_SIDE_PX = 448
"""Of a frame, and of what a server runs first; rounded down to whole patches, within the bounds."""


class PaddedPatches(Geometry):
    """Shrink to fit where a side is too long; pad on the right and below, to whole patches of one colour.

    Attributes:
        height_px: Of the frame.
        width_px: Of the frame.
        patch_px: Side of a patch; the frame is whole patches.
        colour: Of the padding.
    """

    kind: Literal["padded-patches"] = "padded-patches"
    height_px: EdgePx
    width_px: EdgePx
    patch_px: int = Field(gt=0, le=512)
    colour: Colour

    @model_validator(mode="after")
    def _check_frame(self) -> PaddedPatches:
        if self.height_px % self.patch_px or self.width_px % self.patch_px:
            raise ValueError(
                f"a frame of {self.width_px} x {self.height_px} px is no whole number of patches of {self.patch_px} px"
            )
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a usual image, a square."""
        side = min(_USUAL_SIDE_PX, self.height_px, self.width_px) // self.patch_px * self.patch_px
        return max(side, self.patch_px), max(side, self.patch_px)

    @property
    def has_one_size(self) -> bool:
        """False: an image keeps its shape."""
        return False

    @property
    def sides(self) -> Sides:
        """From a patch to the frame's."""
        sizes = self.height_px, self.width_px
        return Sides(self.patch_px, max(sizes), min(sizes), self.patch_px)

    @property
    def for_frames(self) -> Fixed:
        """A square: the frames of a video take as many tokens each."""
        height, width = self.tile_size_px
        return Fixed(height_px=height, width_px=width)

    def within(self, most_px: int) -> PaddedPatches:
        """Return the geometry with images of so many pixels at most: a smaller frame of the same shape.

        Raises:
            ValueError: That is less than a patch.
        """
        area = self.height_px * self.width_px
        if area <= most_px:
            return self
        scale = math.sqrt(most_px / area)
        height, width = (int(side * scale) // self.patch_px * self.patch_px for side in (self.height_px, self.width_px))
        if not min(height, width):
            raise ValueError(
                f"a frame of the shape {self.width_px} x {self.height_px} would hold no patch of {self.patch_px} px"
            )
        return PaddedPatches.model_validate({**self.model_dump(), "height_px": height, "width_px": width})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the size of an image with its padding; it is never cut.

        Raises:
            ImageError: It is so narrow that nothing would be left of its shorter side.
        """
        height, width = (-(-side // self.patch_px) * self.patch_px for side in self._shrunk(width_px, height_px))
        return TileLayout(whole_px=(height, width))

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the image in the upper left corner of its patches."""
        height, width = self.layout(*image.size).whole_px or self.tile_size_px
        shrunk = resized(image, self._shrunk(*image.size)[::-1], resample)
        if shrunk.size == (width, height):
            return [shrunk]
        whole = Image.new("RGB", (width, height), self.colour)
        whole.paste(shrunk)
        return [whole]

    def _shrunk(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (height, width), rounded as the processor does (`FuyuImageProcessor.resize`)."""
        if width_px <= self.width_px and height_px <= self.height_px:
            return height_px, width_px
        scale = min(self.height_px / height_px, self.width_px / width_px)
        height, width = int(height_px * scale), int(width_px * scale)
        if not min(height, width):
            raise ImageError(
                f"the image is {width_px} x {height_px} pixels; shrunk to fit {self.width_px} x {self.height_px}, less "
                "than a pixel is left of its shorter side. Crop it."
            )
        return height, width
