"""An image padded to a large square, and the same made small beside it, in one canvas (DeepSeek-VL's two towers)."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from bundle.image.geometry import EdgePx, Geometry, resized
from bundle.image.layout import TileLayout
from bundle.image.padded import Colour, Padded


class Beside(Geometry):
    """A canvas [side_px, side_px + small_px]: the padded square, and right of it, at the top, that square scaled down.

    A graph of two towers takes one input so; the rest of the canvas is black, and nothing looks at it.

    Attributes:
        side_px: Of the large square.
        small_px: Of the small one.
        colour: Of the padding.
        least_px: Of the image's shorter side in the large square.
    """

    kind: Literal["beside"] = "beside"
    side_px: EdgePx
    small_px: EdgePx
    colour: Colour
    least_px: int = Field(default=1, gt=0, le=4096)

    @model_validator(mode="after")
    def _check_sides(self) -> Beside:
        if self.small_px > self.side_px:
            raise ValueError(f"a small square of {self.small_px} px beside one of {self.side_px}")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of the canvas."""
        return self.side_px, self.side_px + self.small_px

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut: never."""
        return TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the canvas."""
        padded = Padded(side_px=self.side_px, colour=self.colour, scales_first=True, least_px=self.least_px)
        (large,) = padded.tiles(image, resample)
        height, width = self.tile_size_px
        canvas = Image.new("RGB", (width, height))
        canvas.paste(large, (0, 0))
        canvas.paste(resized(large, (self.small_px, self.small_px), resample), (self.side_px, 0))
        return [canvas]
