"""An image scaled until its longer side has one length, with black behind its edges up to whole patches (Aria)."""

from __future__ import annotations

from typing import Annotated, Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.geometry import EdgePx, resized
from bundle.image.keeps_shape import KeepsShape
from bundle.image.layout import TileLayout

_MOST_LENGTHS = 16


class WholePatches(KeepsShape):
    """Scale the longer side to a length in shape, and stretch the shorter one where it is less than a bound.

    Such models were trained on squares whose padding is masked: patches of nothing but padding change nothing, so that
    they are left out here.

    Attributes:
        longest_px: Length of the longer side.
        shortest_px: Least length of the shorter side.
        patch_px: Side of a patch; divides every length of the longer side.
        shorter_px: Other lengths of the longer side that the model was trained on, each less than `longest_px`.
    """

    kind: Literal["whole_patches"] = "whole_patches"
    longest_px: EdgePx
    shortest_px: EdgePx
    patch_px: EdgePx
    shorter_px: Annotated[tuple[EdgePx, ...], Field(max_length=_MOST_LENGTHS)] = ()

    @model_validator(mode="after")
    def _check_lengths(self) -> WholePatches:
        lengths = (self.longest_px, *self.shorter_px)
        if max(lengths) > self.longest_px or any(length % self.patch_px for length in lengths):
            raise ValueError(f"longer sides of {lengths} px in patches of {self.patch_px}, the first the longest")
        if self.shortest_px > min(lengths):
            raise ValueError(f"shorter sides from {self.shortest_px} px, longer ones of {min(lengths)}")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of the largest image, a square."""
        return self.longest_px, self.longest_px

    def within(self, most_px: int) -> WholePatches:
        """Return the geometry with the longest side whose square has so many pixels at most.

        Raises:
            ValueError: There is none.
        """
        lengths = sorted((*self.shorter_px, self.longest_px))
        fitting = [length for length in lengths if length**2 <= most_px]
        if not fitting:
            raise ValueError(f"the smallest images of the model are {lengths[0]} x {lengths[0]} pixels")
        shorter = tuple(fitting[:-1])
        return WholePatches.model_validate({**self.model_dump(), "longest_px": fitting[-1], "shorter_px": shorter})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the size of the image in whole patches."""
        height, width = (-(-side // self.patch_px) * self.patch_px for side in self._scaled_size(width_px, height_px))
        return TileLayout(whole_px=(height, width))

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the image, in the upper left corner of black."""
        height, width = self._scaled_size(*image.size)
        whole = self.layout(*image.size).whole_px or (height, width)
        canvas = Image.new("RGB", whole[::-1])
        canvas.paste(resized(image, (width, height), resample))
        return [canvas]

    def _scaled_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (height, width) without padding."""
        scale = self.longest_px / max(width_px, height_px)
        if width_px >= height_px:
            return max(int(height_px * scale), self.shortest_px), self.longest_px
        return self.longest_px, max(int(width_px * scale), self.shortest_px)
