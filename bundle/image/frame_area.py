"""Bounds of areas, and what they make of the sides of an image or of a video's frames (Qwen2-VL and later)."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator

LARGEST_AREA_PX = 1 << 25
"""Of an image, or of a frame."""
_LARGEST_VIDEO_PX = 1 << 31
"""Of all frames together."""


def scaled_sides(
    width_px: int, height_px: int, step_px: int, bounds_px: tuple[int, int], frames: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """Return (height, width), each rounded to whole steps, then both scaled where the area is out of bounds.

    Args:
        width_px: Of the image.
        height_px: Of the image.
        step_px: Both sides become multiples of it.
        bounds_px: Least and largest area, of all frames together.
        frames: How many there are, in whole groups, and as they are counted once they are out of bounds.
    """
    least_px, most_px = bounds_px
    grouped, num_frames = frames
    height, width = round(height_px / step_px) * step_px, round(width_px / step_px) * step_px
    if grouped * height * width > most_px:
        shrink = math.sqrt(num_frames * height_px * width_px / most_px)
        height = max(step_px, math.floor(height_px / shrink / step_px) * step_px)
        width = max(step_px, math.floor(width_px / shrink / step_px) * step_px)
    elif grouped * height * width < least_px:
        grow = math.sqrt(least_px / (num_frames * height_px * width_px))
        height, width = (math.ceil(side * grow / step_px) * step_px for side in (height_px, width_px))
    return height, width


def grown_sides(width_px: int, height_px: int, step_px: int) -> tuple[int, int]:
    """Return (width, height) of which none is less than a step, both longer by one factor and rounded down."""
    if min(width_px, height_px) >= step_px:
        return width_px, height_px
    grow = max(step_px / height_px, step_px / width_px)
    return int(width_px * grow), int(height_px * grow)


class FrameArea(BaseModel):
    """How a video's frames are scaled, of which some together become one tile.

    Attributes:
        num_grouped: Frames of a tile.
        least_px: Least area of a frame; of all, where `of_all`.
        most_px: Largest area of a frame; of all, where `of_all`.
        of_all: The bounds are those of all frames together (Qwen3-VL).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_grouped: int = Field(gt=0, le=16)
    least_px: int = Field(gt=0, le=_LARGEST_VIDEO_PX)
    most_px: int = Field(gt=0, le=_LARGEST_VIDEO_PX)
    of_all: bool = False

    @model_validator(mode="after")
    def _check_bounds(self) -> FrameArea:
        if self.least_px > self.most_px:
            raise ValueError(f"frames of {self.least_px} to {self.most_px} px")
        return self

    def sides_px(self, num_frames: int, width_px: int, height_px: int, step_px: int) -> tuple[int, int]:
        """Return (height, width) of so many frames, which have this size now."""
        bounds_px = self.least_px, self.most_px
        if not self.of_all:
            return scaled_sides(width_px, height_px, step_px, bounds_px)
        width_px, height_px = grown_sides(width_px, height_px, step_px)
        num_frames = max(num_frames, self.num_grouped)  # a group is filled up with its last frame
        grouped = round(num_frames / self.num_grouped) * self.num_grouped
        return scaled_sides(width_px, height_px, step_px, bounds_px, (grouped, num_frames))
