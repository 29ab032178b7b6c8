"""Image preprocessing: decoded images to the pixels that a vision encoder wants, as the checkpoint's processor does.

The reference is the Pillow backend of the transformers image processors: resampling happens in Pillow on 8-bit RGB,
then every byte becomes `(byte * rescale_factor - mean) / std`. A byte has 256 values, so that affine is a table of 256
floats per channel, computed once with the reference's own roundings and looked up per pixel. The pixels are therefore
equal to the reference's bit for bit (`tests/bundle/test_image_parity.py`). `Image.draft` and `reducing_gap` would be
faster on large photographs and are not used: they change pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bundle.image.geometry import resized
from bundle.image.layout import Pixels, ProcessedImages, TileLayout
from bundle.image.table import KnownGeometry
from bundle.json_file import read_json

PREPROCESSOR = "preprocessor.json"

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]

_FILTERS: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

_LARGEST_FACTOR = 1e3
"""Of the numbers that turn a byte into an encoder's value, which lies about 1."""


class ImageSpec(BaseModel):
    """All that turns a decoded image into `pixel_values`: the content of `preprocessor.json`.

    Attributes:
        geometry: Which part of the image goes where.
        resample: Pillow's filter for every resize.
        rescale_factor: Multiplies a byte before normalisation; usually 1/255.
        mean: Per channel R, G, B, subtracted after rescaling.
        std: Per channel R, G, B, divides the difference.
        normalised_in_graph: The vision encoder takes bytes [I, height, width, 3] and does the last three itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    geometry: KnownGeometry
    resample: Resample
    rescale_factor: float = Field(gt=0, le=_LARGEST_FACTOR)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    normalised_in_graph: bool = False

    @model_validator(mode="after")
    def _check_scale(self) -> ImageSpec:
        if max(map(abs, self.mean)) > _LARGEST_FACTOR or not all(each > 1 / _LARGEST_FACTOR for each in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} would turn bytes into values that no encoder takes")
        return self

    @classmethod
    def read(cls, path: Path) -> ImageSpec:
        """Return the preprocessing in a `preprocessor.json`.

        Raises:
            BundleFileError: The file is missing, not JSON, or made by another version.
        """
        return read_json(cls, path)

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of `pixel_values`; of a usual tile where the geometry has no one size."""
        return self.geometry.tile_size_px

    @property
    def for_frames(self) -> ImageSpec:
        """The preprocessing of a video's frame, which is one tile of `tile_size_px`."""
        frames = self.geometry.for_frames
        return self if frames is self.geometry else self.model_copy(update={"geometry": frames})

    def of_video(self, num_frames: int, width_px: int, height_px: int) -> ImageSpec | None:
        """Return the preprocessing of so many frames of a video of this size; None: the model takes them as images.

        Raises:
            ImageError: No frames of this size are taken.
        """
        frames = self.geometry.of_video(num_frames, width_px, height_px)
        return None if frames is None else self.model_copy(update={"geometry": frames})

    def among(self, num_images: int) -> ImageSpec:
        """Return the preprocessing of an image in a prompt of so many."""
        others = self.geometry.among_others
        is_changed = num_images >= self.geometry.others_from and others is not self.geometry
        return self.model_copy(update={"geometry": others}) if is_changed else self

    def cell(self, image: Image.Image, rows: int, cols: int) -> Image.Image:
        """Return an image stretched to one cell of a tile that is a grid of `rows` x `cols`."""
        height, width = self.tile_size_px
        return resized(_rgb(image), (max(width // cols, 1), max(height // rows, 1)), _FILTERS[self.resample])

    def grid(self, cells: Sequence[Image.Image], cols: int) -> Image.Image:
        """Return the tile of cells from `cell`, row by row; what they leave is black."""
        height, width = self.tile_size_px
        tile = Image.new("RGB", (width, height))
        for index, cell in enumerate(cells):
            row, col = divmod(index, cols)
            tile.paste(cell, (col * cell.width, row * cell.height))
        return tile

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size will be cut, without its pixels: enough to count its tokens."""
        return self.geometry.layout(width_px, height_px)

    def preprocess(self, images: Sequence[Image.Image]) -> ProcessedImages:
        """Return the pixels and the tile layout of each image.

        Args:
            images: Upright images as `bundle.decode.decode_image` returns them; other modes are converted to RGB.
        """
        groups = self.groups([tile for image in images for tile in self.cut(image)])
        return ProcessedImages(tuple(groups), tuple(self.layout(*image.size) for image in images))

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """Return the RGB tiles of an upright image, in the order of its layout."""
        return self.geometry.tiles(_rgb(image), _FILTERS[self.resample])

    def smaller(self, tiles: Sequence[Image.Image], side_px: int) -> list[Image.Image]:
        """Return tiles scaled down to squares of one side."""
        return [resized(tile, (side_px, side_px), _FILTERS[self.resample]) for tile in tiles]

    def groups(self, tiles: Sequence[Image.Image]) -> Iterator[Pixels]:
        """Yield the pixels of tiles from `cut`, neighbours of one size together; of no tile, those of none."""
        if not tiles:
            yield self.blank(0)
        for _, group in groupby(tiles, key=lambda tile: tile.size):
            yield self.pixels(list(group))

    def pixels(self, tiles: Sequence[Image.Image]) -> Pixels:
        """Return what the vision encoder takes of tiles of one size."""
        if self.normalised_in_graph:
            return np.stack([np.asarray(tile) for tile in tiles]) if tiles else self.blank(0)
        width, height = tiles[0].size if tiles else self.tile_size_px[::-1]
        pixel_values = np.empty((len(tiles), 3, height, width), np.float32)
        for tile, out in zip(tiles, pixel_values, strict=True):
            self._normalise(tile, out)
        return pixel_values

    def grouped(self, pixels: Pixels) -> Pixels:
        """Return a group of a video's frames as one tile, the channels of each behind those of the frame before."""
        return np.concatenate(list(pixels), axis=-1 if self.normalised_in_graph else 0)[None]

    def blank(self, num_tiles: int) -> Pixels:
        """Return the pixels of usual tiles, black, or grey where they are normalised: for a run that warms up."""
        height, width = self.tile_size_px
        if self.normalised_in_graph:
            return np.zeros((num_tiles, height, width, 3), np.uint8)
        return np.zeros((num_tiles, 3, height, width), np.float32)

    def _normalise(self, tile: Image.Image, out: npt.NDArray[np.float32]) -> None:
        """Write one RGB tile into `out` [3, height, width]."""
        pixels = np.asarray(tile)
        for channel, table in enumerate(_tables(self.rescale_factor, self.mean, self.std)):
            np.take(table, pixels[:, :, channel], out=out[channel], mode="clip")


@lru_cache(maxsize=32)
def _tables(rescale_factor: float, mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return [3, 256] float32, every byte's normalised value per channel, rounded where the reference rounds."""
    rescaled = (np.arange(256, dtype=np.float64) * rescale_factor).astype(np.float32)
    tables: npt.NDArray[np.float32] = (rescaled - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[
        :, None
    ]
    tables.setflags(write=False)
    return tables


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")
