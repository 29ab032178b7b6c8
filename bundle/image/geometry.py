"""What a geometry is: the one way in which a checkpoint's images become what its encoder takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from bundle.image.layout import TileLayout

EdgePx: TypeAlias = Annotated[int, Field(gt=0, le=4096)]
"""Of what an encoder takes in one piece: 200 MB of float32 at most."""


Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of width and height."""
_LARGEST_CANVAS_PX = 1 << 26
"""Area of a grid of tiles before it is cut: 200 MB of bytes; published models have 7 million pixels at most."""


def check_canvas(num_tiles: int, tile_px: int) -> None:
    """Check that a grid of square tiles can be held before it is cut.

    Raises:
        ValueError: It cannot.
    """
    if num_tiles * tile_px**2 > _LARGEST_CANVAS_PX:
        raise ValueError(
            f"{num_tiles} tiles of {tile_px} px are more than {_LARGEST_CANVAS_PX >> 20} million pixels at once"
        )


@dataclass(frozen=True)
class Sides:
    """How long the sides of a tile are whose size varies from image to image.

    Attributes:
        least_px: The shortest.
        longest_px: The longest, of very narrow images perhaps longer.
        square_px: Of the largest square.
        step_px: A side that is no multiple of it is never there.
    """

    least_px: int
    longest_px: int
    square_px: int
    step_px: int


class Geometry(BaseModel, ABC):
    """Which part of an image goes where; a file each, and a line in `bundle.image.table`.

    Attributes:
        kind: Its name in `preprocessor.json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str

    @property
    @abstractmethod
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile; of a usual one where `has_one_size` is false."""

    @property
    def has_one_size(self) -> bool:
        """Whether every tile of every image has the same size."""
        return True

    @property
    def sides(self) -> Sides | None:
        """How long sides are where `has_one_size` is false; None where it is true."""
        return None

    @property
    def for_frames(self) -> Geometry:
        """The geometry of a video's frame, which is one tile of `tile_size_px`: itself where that is so of images."""
        return self

    def of_video(self, num_frames: int, width_px: int, height_px: int) -> Geometry | None:
        """Return the geometry of so many frames of a video of this size; None: the model takes frames as images alone.

        Raises:
            ImageError: No frames of this size are taken.
        """
        return None

    @property
    def among_others(self) -> Geometry:
        """The geometry of an image that shares its prompt with others: itself unless the model sees those otherwise."""
        return self

    @property
    def others_from(self) -> int:
        """Images that a prompt has at least where `among_others` holds."""
        return 2

    @property
    def is_cut_at_once(self) -> bool:
        """Whether even an image smaller than its tiles is cut as soon as it is decoded."""
        return False

    @property
    def places_boxes(self) -> bool:
        """Whether it is known where a part of an image lies in the only tile, all of which is seen."""
        return False

    def placed(self, box: Box, width_px: int, height_px: int) -> Box:
        """Return a box of an image of this size as one of its tile, where `places_boxes`."""
        return box

    def within(self, most_px: int) -> Geometry:
        """Return the geometry with images of so many pixels at most.

        Raises:
            ValueError: Its images have a size of their own, or none is so small.
        """
        height, width = self.tile_size_px
        raise ValueError(f"its images are always {width} x {height} pixels")

    @abstractmethod
    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut, without its pixels.

        Raises:
            ImageError: No image of this size is taken; the message says which are.
        """

    @abstractmethod
    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the tiles of an RGB image in the order of their features.

        Raises:
            ImageError: As of `layout`.
        """


def resized(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Return an image scaled to (width, height), itself where it has that size."""
    return image if image.size == size else image.resize(size, resample)
