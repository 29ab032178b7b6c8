"""Image preprocessing: decoded images to the pixels that a vision encoder wants, as the checkpoint's processor does.

The reference is the Pillow backend of the transformers image processors: resampling happens in Pillow on 8-bit RGB,
then every byte becomes `(byte * rescale_factor - mean) / std`. A byte has 256 values, so that affine is a table of 256
floats per channel, computed once with the reference's own roundings and looked up per pixel. The pixels are therefore
equal to the reference's bit for bit (`tests/bundle/test_image_parity.py`). `Image.draft` and `reducing_gap` would be
faster on large photographs and are not used: they change pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bundle.json_file import read_json

PREPROCESSOR = "preprocessor.json"

Pixels: TypeAlias = npt.NDArray[np.float32 | np.uint8]

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]

_FILTERS: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

_TILED_LONGEST_EDGE_PX = 4096
"""Upper bound on either edge before tiling, fixed in the Idefics3 processor whatever its configuration says."""

_LARGEST_FACTOR = 1e3
"""Of the numbers that turn a byte into an encoder's value, which lies about 1."""
_LARGEST_SHORT_EDGE_PX = 1024
"""Before a centre is cut out: of an image of 200:1, 600 MB of pixels."""
_MOST_TILES_A_SIDE = 64
EdgePx: TypeAlias = Annotated[int, Field(gt=0, le=4096)]
"""Of what an encoder takes in one piece: 200 MB of float32 at most."""


@dataclass(frozen=True)
class TileLayout:
    """How one image was cut: `rows` x `cols` tiles row by row, then always the whole image as the last tile.

    Attributes:
        rows: 0 where the image was not cut; its only tile is then the whole image.
        cols: 0 where the image was not cut.
        fewer_tokens: That the image takes in a prompt, where its features are pooled or sampled; None: all of them.
    """

    rows: int = 0
    cols: int = 0
    fewer_tokens: int | None = None

    @property
    def num_tiles(self) -> int:
        """Rows of `pixel_values` that the image takes."""
        return self.rows * self.cols + 1

    def num_tokens(self, tokens_per_tile: int) -> int:
        """Return how many tokens the image takes in a prompt."""
        return self.num_tiles * tokens_per_tile if self.fewer_tokens is None else self.fewer_tokens


@dataclass(frozen=True)
class ProcessedImages:
    """Pixels of a batch of images, and how they were cut.

    Attributes:
        pixel_values: [I, 3, height, width] float32, or [I, height, width, 3] uint8 where the graph normalises; the
            tiles of the first image, then of the second, ...
        layouts: One per image; their `num_tiles` sum to I.
    """

    pixel_values: Pixels
    layouts: tuple[TileLayout, ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Fixed(_Frozen):
    """Stretch the image to one size (SigLIP).

    Attributes:
        height_px: Of the encoder's input.
        width_px: Of the encoder's input.
    """

    kind: Literal["fixed"] = "fixed"
    height_px: EdgePx
    width_px: EdgePx

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.height_px, self.width_px

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut: never."""
        return TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the stretched image."""
        return [_resized(image, (self.width_px, self.height_px), resample)]


class Cropped(_Frozen):
    """Scale the shortest edge to a length, then cut out the centre, black outside the image (CLIP, LLaVA-1.5).

    Attributes:
        shortest_edge_px: After scaling.
        height_px: Of the cut.
        width_px: Of the cut.
    """

    kind: Literal["cropped"] = "cropped"
    shortest_edge_px: int = Field(gt=0, le=_LARGEST_SHORT_EDGE_PX)
    height_px: EdgePx
    width_px: EdgePx

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.height_px, self.width_px

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut: never."""
        return TileLayout()

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the centre of the scaled image."""
        scaled = _resized(image, self._scaled_size(*image.size), resample)
        left = (scaled.width - self.width_px) // 2
        top = (scaled.height - self.height_px) // 2
        return [scaled.crop((left, top, left + self.width_px, top + self.height_px))]

    def _scaled_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        short, long = sorted((width_px, height_px))
        scaled_long = int(self.shortest_edge_px * long / short)
        if width_px <= height_px:
            return self.shortest_edge_px, scaled_long
        return scaled_long, self.shortest_edge_px


class Tiled(_Frozen):
    """Scale the longest edge, then cut into square tiles and add the whole image as one more (Idefics3, SmolVLM).

    Attributes:
        longest_edge_px: After the first scaling.
        tile_px: Edge of a tile.
        splits: False: no cutting, the whole image is the only tile.
    """

    kind: Literal["tiled"] = "tiled"
    longest_edge_px: int = Field(gt=0, le=1 << 20)
    tile_px: EdgePx
    splits: bool

    @model_validator(mode="after")
    def _check_tiles(self) -> Tiled:
        longest = min(self.longest_edge_px, _TILED_LONGEST_EDGE_PX)
        if self.splits and longest > _MOST_TILES_A_SIDE * self.tile_px:
            raise ValueError(f"tiles of {self.tile_px} px out of {longest}; at most {_MOST_TILES_A_SIDE} on a side")
        return self

    @property
    def tile_size_px(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.tile_px, self.tile_px

    def layout(self, width_px: int, height_px: int) -> TileLayout:
        """Return how an image of this size is cut."""
        width, height = self._grid_size(*self._scaled_size(width_px, height_px))
        if not self.splits or (width == self.tile_px and height == self.tile_px):
            return TileLayout()
        return TileLayout(rows=height // self.tile_px, cols=width // self.tile_px)

    def tiles(self, image: Image.Image, resample: Image.Resampling) -> list[Image.Image]:
        """Return the tiles row by row, then the whole image."""
        layout = self.layout(*image.size)
        edge = self.tile_px
        scaled = _resized(image, self._scaled_size(*image.size), resample)
        if layout.rows == 0:
            return [_resized(scaled, (edge, edge), resample)]
        grid = _resized(scaled, (layout.cols * edge, layout.rows * edge), resample)
        corners = [(col * edge, row * edge) for row in range(layout.rows) for col in range(layout.cols)]
        cut = [grid.crop((left, top, left + edge, top + edge)) for left, top in corners]
        return [*cut, _resized(grid, (edge, edge), resample)]

    def _scaled_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (width, height) after the first scaling: the shorter edge is even, and at least 1."""
        limit = self.longest_edge_px
        is_wide = width_px >= height_px
        ratio = width_px / height_px
        short = int(limit / ratio) if is_wide else int(limit * ratio)
        short = max(short + short % 2, 1)
        width, height = (limit, short) if is_wide else (short, limit)
        if limit <= _TILED_LONGEST_EDGE_PX:
            return width, height
        return _bounded(width, height, _TILED_LONGEST_EDGE_PX)

    def _grid_size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (width, height) rounded up to whole tiles, the longer edge first, as the reference does."""
        ratio = width_px / height_px
        if width_px >= height_px:
            width = self._whole_tiles(width_px)
            return width, self._whole_tiles(int(width / ratio))
        height = self._whole_tiles(height_px)
        return self._whole_tiles(int(height * ratio)), height

    def _whole_tiles(self, edge_px: int) -> int:
        return max(math.ceil(edge_px / self.tile_px), 1) * self.tile_px


def _bounded(width_px: int, height_px: int, limit_px: int) -> tuple[int, int]:
    """Return (width, height) scaled down until the longest edge is `limit_px`."""
    ratio = width_px / height_px
    if width_px >= height_px:
        return limit_px, max(int(limit_px / ratio), 1)
    return max(int(limit_px * ratio), 1), limit_px


def _resized(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resample)


Geometry: TypeAlias = Annotated[Fixed | Cropped | Tiled, Field(discriminator="kind")]


class ImageSpec(_Frozen):
    """All that turns a decoded image into `pixel_values`: the content of `preprocessor.json`.

    Attributes:
        geometry: Which part of the image goes where.
        resample: Pillow's filter for every resize.
        rescale_factor: Multiplies a byte before normalisation; usually 1/255.
        mean: Per channel R, G, B, subtracted after rescaling.
        std: Per channel R, G, B, divides the difference.
        normalised_in_graph: The vision encoder takes bytes [I, height, width, 3] and does the last three itself.
    """

    geometry: Geometry
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
        """(height, width) of `pixel_values`."""
        return self.geometry.tile_size_px

    @property
    def for_frames(self) -> ImageSpec:
        """The preprocessing of a video's frame: the same, but never in tiles.

        Of a tiled geometry that is SmolVLM's own video preprocessing where `video_sampling.video_size` is the tile's
        edge, as its published checkpoints have it: the longest edge is scaled to a tile's, then all to a square.
        """
        if not isinstance(self.geometry, Tiled):
            return self
        edge = self.geometry.tile_px
        return self.model_copy(update={"geometry": Tiled(longest_edge_px=edge, tile_px=edge, splits=False)})

    def cell(self, image: Image.Image, rows: int, cols: int) -> Image.Image:
        """Return an image stretched to one cell of a tile that is a grid of `rows` x `cols`."""
        height, width = self.tile_size_px
        return _resized(_rgb(image), (max(width // cols, 1), max(height // rows, 1)), _FILTERS[self.resample])

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
        pixel_values = self.pixels([tile for image in images for tile in self.cut(image)])
        return ProcessedImages(pixel_values, tuple(self.layout(*image.size) for image in images))

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """Return the RGB tiles of an upright image, in the order of its layout."""
        return self.geometry.tiles(_rgb(image), _FILTERS[self.resample])

    def pixels(self, tiles: Sequence[Image.Image]) -> Pixels:
        """Return what the vision encoder takes of tiles from `cut`: as `ProcessedImages.pixel_values`."""
        if self.normalised_in_graph:
            return np.stack([np.asarray(tile) for tile in tiles]) if tiles else self.blank(0)
        pixel_values = np.empty((len(tiles), 3, *self.tile_size_px), np.float32)
        for tile, out in zip(tiles, pixel_values, strict=True):
            self._normalise(tile, out)
        return pixel_values

    def blank(self, num_tiles: int) -> Pixels:
        """Return the pixels of black tiles, or of grey ones where they are normalised: for a run that warms up."""
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
