"""An image that keeps its shape: its short side brought to a length, its long side bounded, both whole patches."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.errors import ImageError
from bundle.image.fixed import Fixed
from bundle.image.geometry import EdgePx, Geometry, Sides, resized
from bundle.image.layout import TileLayout


class ShortestEdge(Geometry):
    """Scale the short side to a length, or less where the long one would exceed its own, then to whole steps (ViLT).

    Attributes:
        shortest_px: Of the short side.
        longest_px: Of the long side, at most.
        step_px: Both sides are multiples of it.
        crop_px: Side of the square that is cut out of the middle then, black outside the image; None: nothing is cut.
    """

    kind: Literal["shortest-edge"] = "shortest-edge"
    shortest_px: EdgePx
    longest_px: EdgePx
    step_px: int = Field(gt=0, le=512)
    crop_px: EdgePx | None = None

    @model_validator(mode="after")
    def _check_bounds(self) -> ShortestEdge:
        if not self.step_px <= self.shortest_px <= self.longest_px:
            raise ValueError(f"sides from {self.shortest_px} to {self.longest_px} px in steps of {self.step_px} px")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a usual image, a square."""
        if self.crop_px is not None:
            return self.crop_px, self.crop_px
        side = self.shortest_px // self.step_px * self.step_px
        return side, side

    @property
    def has_one_size(self) -> bool:
        """Whether a square is cut out; else an image keeps its shape."""
        return self.crop_px is not None

    @property
    def sides(self) -> Sides | None:
        """From a step to the bound of the long side; None where a square is cut out."""
        if self.has_one_size:
            return None
        step, longest = self.step_px, self.longest_px // self.step_px * self.step_px
        return Sides(step, longest, self.tile_size_px[0], step)

    @property
    def for_frames(self) -> Geometry:
        """A square."""
        if self.crop_px is not None:
            return self
        height, width = self.tile_size_px
        return Fixed(height_px=height, width_px=width)

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the size that an image is scaled to; it is never cut.

        Raises:
            ImageError: It is so narrow that no step of its short side would be left.
        """
        height, width = self._scaled(height_px, width_px)
        if not min(height, width):
            raise ImageError(
                f"the image is {width_px} x {height_px} pixels; with its long side at {self.longest_px}, less than the "
                f"{self.step_px} of a patch is left of the other. Crop it."
            )
        return TileLayout(whole_px=(height, width)) if self.crop_px is None else TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the scaled image."""
        self.layout(*image.size)
        height, width = self._scaled(image.height, image.width)
        scaled, side = resized(image, (width, height), resample), self.crop_px
        if side is None:
            return [scaled]
        left, top = (width - side) // 2, (height - side) // 2
        return [scaled.crop((left, top, left + side, top + side))]

    def _scaled(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return (height, width), in the reference's order of roundings (`get_resize_output_image_size` of ViLT's)."""
        scale = self.shortest_px / min(height_px, width_px)
        height, width = (
            (float(self.shortest_px), scale * width_px)
            if height_px < width_px
            else (scale * height_px, float(self.shortest_px))
        )
        if max(height, width) > self.longest_px:
            shrink = self.longest_px / max(height, width)
            height, width = shrink * height, shrink * width
        return int(height + 0.5) // self.step_px * self.step_px, int(width + 0.5) // self.step_px * self.step_px
