"""An image that keeps its shape: scaled until its sides are whole patches and its area lies between two bounds."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from bundle.errors import ImageError
from bundle.image.fixed import Fixed
from bundle.image.frame_area import LARGEST_AREA_PX, FrameArea, grown_sides, scaled_sides
from bundle.image.geometry import Sides
from bundle.image.keeps_shape import KeepsShape
from bundle.image.layout import TileLayout

_LONGEST_RATIO = 200
"""Of long to short side, fixed in the processors whatever their configurations say (Qwen2-VL, `smart_resize`)."""
_USUAL_SIDE_PX = 448
"""Of a frame, and of what a server runs first; rounded to whole steps, within the bounds."""
_LONGEST_FRAME_PX = 4096
"""Of a frame's sides, as of every tile of a size of its own."""


class Area(KeepsShape):
    """Scale both sides to whole steps, nearly in shape, with an area from `least_px` to `most_px` (Qwen2-VL and later).

    Attributes:
        step_px: Both sides are multiples of it: a patch, times the patches on a side that become one token.
        least_px: Least area in pixels.
        most_px: Largest area in pixels.
        grows: A side below a step is made one first, and the other longer with it (PaddleOCR-VL).
        grows_whole: Both sides are made longer first by what the shorter one lacks of a step, and rounded down (GLM).
        frames: How the frames of a video are scaled, where the model has tokens of its own for those.
    """

    kind: Literal["area"] = "area"
    step_px: int = Field(gt=0, le=512)
    least_px: int = Field(gt=0, le=LARGEST_AREA_PX)
    most_px: int = Field(gt=0, le=LARGEST_AREA_PX)
    grows: bool = False
    grows_whole: bool = False
    frames: FrameArea | None = None

    @model_validator(mode="after")
    def _check_bounds(self) -> Area:
        if not self.step_px**2 <= self.most_px or self.least_px > self.most_px:
            raise ValueError(f"areas from {self.least_px} to {self.most_px} px in steps of {self.step_px} px a side")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a usual image, a square."""
        return self._scaled(_USUAL_SIDE_PX, _USUAL_SIDE_PX)

    @property
    def sides(self) -> Sides:
        """From a step to what the narrowest image has."""
        step, square = self.step_px, math.isqrt(self.most_px)
        return Sides(step, math.isqrt(_LONGEST_RATIO * self.most_px) // step * step + step, square // step * step, step)

    def of_video(self, num_frames: int, width_px: int, height_px: int) -> Fixed | None:
        """Return the geometry of a video's frames, which keep their shape; None: they have no tokens of their own.

        Raises:
            ImageError: They are too narrow.
        """
        if self.frames is None:
            return None
        self._check_shape("the video's frames are", width_px, height_px)
        height, width = self.frames.sides_px(num_frames, width_px, height_px, self.step_px)
        if max(height, width) > _LONGEST_FRAME_PX or height * width > LARGEST_AREA_PX:
            raise ImageError(
                f"the video's frames of {width_px} x {height_px} pixels would be scaled to {width} x {height}; sides "
                f"of {_LONGEST_FRAME_PX} at most are taken. Scale them down, or send more of them."
            )
        return Fixed(height_px=height, width_px=width)

    def within(self, most_px: int) -> Area:
        """Return the geometry with images of so many pixels at most.

        Raises:
            ValueError: That is less than a step's square.
        """
        most = min(most_px, self.most_px)
        bounds = {"most_px": most, "least_px": min(most, self.least_px)}
        frames = self.frames
        if frames is not None and not frames.of_all:
            of_frame = min(most, frames.most_px)
            frames = frames.model_copy(update={"most_px": of_frame, "least_px": min(of_frame, frames.least_px)})
        return Area.model_validate({**self.model_dump(), **bounds, "frames": frames})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the size that an image is scaled to; it is never cut.

        Raises:
            ImageError: It is too narrow.
        """
        if self.grows:
            width_px, height_px = self._grown(width_px, height_px)
        elif self.grows_whole:
            width_px, height_px = grown_sides(width_px, height_px, self.step_px)
        self._check_shape("the image is", width_px, height_px)
        return TileLayout(whole_px=self._scaled(width_px, height_px))

    def _grown(self, width_px: int, height_px: int) -> tuple[int, int]:
        step = self.step_px
        if height_px < step:
            width_px, height_px = round(width_px * step / height_px), step
        if width_px < step:
            width_px, height_px = step, round(height_px * step / width_px)
        return width_px, height_px

    def _check_shape(self, what: str, width_px: int, height_px: int) -> None:
        short, long = sorted((width_px, height_px))
        if long > _LONGEST_RATIO * short:
            raise ImageError(
                f"{what} {width_px} x {height_px} pixels; the model takes sides of 1 to {_LONGEST_RATIO} at most. Crop "
                "it."
            )

    def _scaled(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (height, width) in whole steps, within the bounds."""
        return scaled_sides(width_px, height_px, self.step_px, (self.least_px, self.most_px))
