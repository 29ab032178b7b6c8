"""How an image was cut into what an encoder takes: enough to count its tokens and to place them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.float32 | np.uint8]
"""Tiles of one size: [I, 3, height, width] float32, or [I, height, width, 3] uint8 where the graph normalises."""


@dataclass(frozen=True)
class VideoTimes:
    """When the groups of a video's frames are shown, each of which an encoder takes as one tile.

    Attributes:
        middles_s: Of each group, the mean of its first and its last frame's time.
        group_s: From one group to the next, on average.
    """

    middles_s: tuple[float, ...]
    group_s: float


@dataclass(frozen=True)
class TileLayout:
    """How one image was cut: `rows` x `cols` tiles row by row, and always the whole image as one more.

    Attributes:
        rows: 0 where the image was not cut; its only tile is then the whole image.
        cols: 0 where the image was not cut.
        fewer_tokens: That the image takes in a prompt, where its features are pooled or sampled; None: all of them.
        whole_px: (height, width) of the tile that is the whole image, where that varies from image to image; None: it
            has the size of every tile.
        tile_px: (height, width) of the other tiles, where that varies from image to image, too; None: it does not.
        image_px: (height, width) of the image itself, where its tokens depend on that; None: they do not.
        is_group: It is several frames of a video, which the encoder takes one behind the other as channels of one tile.
        video: It is not one image but a whole video, whose groups of frames have `whole_px` each; None: it is one.
    """

    rows: int = 0
    cols: int = 0
    fewer_tokens: int | None = None
    whole_px: tuple[int, int] | None = None
    tile_px: tuple[int, int] | None = None
    image_px: tuple[int, int] | None = None
    is_group: bool = False
    video: VideoTimes | None = None

    @property
    def num_tiles(self) -> int:
        """Tiles that the encoder sees of the image."""
        return self.rows * self.cols + 1

    @property
    def is_uniform(self) -> bool:
        """Whether the features of an image are those of tiles of one size, of each as many."""
        return self.whole_px is None and self.image_px is None

    def num_pixels(self, tile_size_px: tuple[int, int]) -> int:
        """Return how many pixels the tiles have, of which those of certain size are (height, width)."""
        height, width = self.tile_px or tile_size_px
        tile = height * width
        of_whole = self.whole_px or tile_size_px
        whole = of_whole[0] * of_whole[1]
        return self.rows * self.cols * tile + whole


@dataclass(frozen=True)
class ProcessedImages:
    """Pixels of a batch of images, and how they were cut.

    Attributes:
        groups: Of all images, neighbouring tiles of one size together: the tiles of the first image, of the second, ...
        layouts: One per image; their `num_tiles` sum to the number of tiles.
    """

    groups: tuple[Pixels, ...]
    layouts: tuple[TileLayout, ...]

    @property
    def pixel_values(self) -> Pixels:
        """All tiles.

        Raises:
            ValueError: They are of several sizes.
        """
        if len(self.groups) != 1:
            raise ValueError(f"the tiles are of {len(self.groups)} sizes: {shapes_of(self.groups)}; take the groups")
        return self.groups[0]


def shapes_of(groups: Sequence[Pixels]) -> list[tuple[int, ...]]:
    """Return the shapes of pixels, for messages."""
    return [group.shape for group in groups]
