"""An image padded to a square of one colour."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from PIL import Image
from pydantic import Field

from bundle.image.geometry import Box, EdgePx, Geometry, resized
from bundle.image.layout import TileLayout

Colour: TypeAlias = tuple[
    Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]
]
"""R, G, B."""
_LARGEST_SQUARE_PX = 1 << 13
"""Edge of a square that is padded before it is scaled, 200 MB of bytes; of longer images the reference makes gigabytes,
and a scaled image is padded instead."""


class Padded(Geometry):
    """Pad to a square, scaled to one size before or behind that (LLaVA-OneVision's several images; DeepSeek-VL).

    Attributes:
        side_px: Of the square.
        colour: Of the padding.
        scales_first: The longer side is scaled before the image is padded; else the square is scaled.
        least_px: Of the shorter side, where that is scaled first.
        centres_evenly: Half of an uneven padding before the image is rounded to an even number (Pillow's `pad`); else
            down.
        tells_size: A layout carries the image's size, by which a prompt tells an image from a frame.
    """

    kind: Literal["padded"] = "padded"
    side_px: EdgePx
    colour: Colour
    scales_first: bool
    least_px: int = Field(default=1, gt=0, le=4096)
    centres_evenly: bool = False
    tells_size: bool = False

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.side_px, self.side_px

    @property
    def places_boxes(self) -> bool:
        """True."""
        return True

    def placed(self, box: Box, width_px: int, height_px: int) -> Box:
        """Return a box of an image of this size as one of the square."""
        if self.scales_first or max(width_px, height_px) > _LARGEST_SQUARE_PX:
            side, (width, height) = self.side_px, self._scaled_size(width_px, height_px)
        else:
            side, (width, height) = max(width_px, height_px), (width_px, height_px)
        left, top = self._before(side - width), self._before(side - height)
        across, down = (
            tuple((first + share * size) / side for share in shares)
            for first, size, shares in ((left, width, box[::2]), (top, height, box[1::2]))
        )
        return across[0], down[0], across[1], down[1]

    @property
    def is_cut_at_once(self) -> bool:
        """True: it may be what a model makes of several images alone."""
        return True

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut: never."""
        return TileLayout(image_px=(height_px, width_px)) if self.tells_size else TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the square."""
        size = (self.side_px, self.side_px)
        if self.scales_first or max(image.size) > _LARGEST_SQUARE_PX:
            return [self._squared(resized(image, self._scaled_size(*image.size), resample), self.side_px)]
        return [resized(self._squared(image, max(image.size)), size, resample)]

    def _scaled_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        scale = self.side_px / max(width_px, height_px)
        return max(round(width_px * scale), self.least_px), max(round(height_px * scale), self.least_px)

    def _squared(self, image: Image.Image, side_px: int) -> Image.Image:
        """Return an image in the middle of a square; what is uneven is padded behind it."""
        if image.size == (side_px, side_px):
            return image
        square = Image.new("RGB", (side_px, side_px), self.colour)
        square.paste(image, (self._before(side_px - image.width), self._before(side_px - image.height)))
        return square

    def _before(self, padding_px: int) -> int:
        """Return how much of a padding stands before the image."""
        return round(padding_px / 2) if self.centres_evenly else padding_px // 2
