"""An image's tokens row by row, with one that ends each row and another that ends the image (Pixtral, Mistral 3)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Literal

from pydantic import Field

from bundle.errors import ImageError
from bundle.fields import MOST_NAME_CHARACTERS
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt


class PixtralPrompt(ImagePrompt):
    """As Pixtral was trained (arXiv 2410.07073, section 2.2), and without ends as LightOnOCR was.

    Attributes:
        step_px: Side of the square of pixels that one token stands for.
        break_token: Behind every row but the last; empty: nothing is.
        end_token: Behind the last row; empty: nothing is.
    """

    kind: Literal["pixtral"] = "pixtral"
    step_px: int = Field(gt=0, le=512)
    break_token: str = Field(default="", max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(default="", max_length=MOST_NAME_CHARACTERS)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with those that end its rows."""
        rows, cols = self._grid(layout)
        return self.break_token.join([self.image_token * cols] * rows) + self.end_token

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many image tokens an image of that size takes, those that end rows aside."""
        rows, cols = self._grid(layout)
        return rows * cols

    def check(self, layouts: Sequence[TileLayout]) -> None:
        """Check that every image has a token: sides in steps below a token's square may be shorter than one.

        Raises:
            ImageError: One has none.
        """
        for number, layout in enumerate(layouts, 1):
            if layout.whole_px is not None and 0 in self._grid(layout):
                height, width = layout.whole_px
                raise ImageError(
                    f"image {number} of the messages is {width} x {height} pixels once scaled; the model takes squares "
                    f"of {self.step_px} pixels, of which it has none. Crop or enlarge it."
                )

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's, those that end rows and images among them."""
        return super().writes(token) or token in (self.break_token, self.end_token)

    def _grid(self, layout: TileLayout) -> tuple[int, int]:
        """Return (rows, cols) of an image's tokens; a frame's are a square, or where they are not, a line."""
        if layout.fewer_tokens is None and layout.whole_px is not None:
            return layout.whole_px[0] // self.step_px, layout.whole_px[1] // self.step_px
        num_tokens = self.tokens_per_tile if layout.fewer_tokens is None else layout.fewer_tokens
        side = isqrt(num_tokens)
        return (side, side) if side * side == num_tokens else (1, num_tokens)
