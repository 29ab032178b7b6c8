"""An image that keeps its shape, as large as so many patches allow."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bundle.image.geometry import Sides
from bundle.image.keeps_shape import KeepsShape
from bundle.image.layout import TileLayout

_LEAST_SCALE, _LARGEST_SCALE, _PRECISION = 1e-6, 100.0, 1e-5
"""Between which the scale is searched by halves, and until how near; fixed in the processor (Siglip2ImageProcessor)."""


class MostPatches(KeepsShape):
    """Scale both sides alike, up to whole patches, as far as all of them are no more than a number (SigLIP 2, NaFlex).

    Attributes:
        patch_px: Side of a patch.
        most_patches: Of an image.
    """

    kind: Literal["most patches"] = "most patches"
    patch_px: int = Field(gt=0, le=512)
    most_patches: int = Field(gt=0, le=1 << 14)

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of a usual image, a square."""
        side = math.isqrt(self.most_patches) * self.patch_px
        return side, side

    @property
    def sides(self) -> Sides:
        """From a patch to a row of all patches."""
        patch = self.patch_px
        return Sides(patch, self.most_patches * patch, math.isqrt(self.most_patches) * patch, patch)

    def within(self, most_px: int) -> MostPatches:
        """Return the geometry with images of so many pixels at most.

        Raises:
            ValueError: That is less than a patch.
        """
        most = min(most_px // self.patch_px**2, self.most_patches)
        return MostPatches.model_validate({**self.model_dump(), "most_patches": most})

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return the size that an image is scaled to; it is never cut."""
        least, largest = _LEAST_SCALE, _LARGEST_SCALE
        while largest - least >= _PRECISION:
            scale = (least + largest) / 2
            rows, cols = self._grid(width_px, height_px, scale)
            least, largest = (scale, largest) if rows * cols <= self.most_patches else (least, scale)
        rows, cols = self._grid(width_px, height_px, least)
        return TileLayout(whole_px=(rows * self.patch_px, cols * self.patch_px))

    def _grid(self, width_px: int, height_px: int, scale: float) -> tuple[int, int]:
        """Return rows and columns of an image at a scale, at least one of each."""
        rows, cols = (math.ceil(edge * scale / self.patch_px) for edge in (height_px, width_px))
        return max(rows, 1), max(cols, 1)
