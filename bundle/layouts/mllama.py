"""One token for an image, whose features stand in a memory that cross-attention reads (Llama 3.2 Vision)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bundle.image.layout import TileLayout
from bundle.layouts.memory_room import check_memory_room
from bundle.layouts.prompt import ImagePrompt, Memory, Span


class MllamaPrompt(ImagePrompt):
    """As Llama 3.2 Vision was trained.

    A token sees the tiles of the image before it, or of all of them where images follow one another; those behind the
    last image see that one. Tokens before any image have no image to see: cross-attention lets them look at all of
    the memory and adds what they see, while the feed-forward behind it adds nothing for them (transformers, `mllama`).

    The encoder gives rows for as many tiles as a grid may have; what of them is no tile stands behind all tiles.

    Attributes:
        tile_px: Edge of a tile.
        features_per_tile: Rows of features of one.
        most_tiles: Of an image, for all of which the encoder gives rows.
        most_images: In one conversation, for which the memory has room.
    """

    fills_memory: ClassVar[bool] = True

    kind: Literal["mllama"] = "mllama"
    tile_px: int = Field(gt=0, le=4096)
    features_per_tile: int = Field(gt=0, le=1 << 16)
    most_tiles: int = Field(gt=0, le=64)
    most_images: int = Field(gt=0, le=1024)

    @property
    def rows_per_tile(self) -> int:
        """Rows that the encoder gives of an image: for all tiles that one may have."""
        return self.most_tiles * self.features_per_tile

    def text(self, layout: TileLayout) -> str:
        """Return the token of an image."""
        return self.image_token

    def num_tokens(self, layout: TileLayout) -> int:
        """Return 1: features take no place in a prompt."""
        return 1

    def check(self, layouts: Sequence[TileLayout]) -> None:
        """Check that the memory has room for all images."""
        check_memory_room(len(layouts), self.most_images)

    def memory(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Memory | None:
        """Return the tiles of all images, then what pads them; and what each token sees of it."""
        if not layouts:
            return None
        ends = [self._num_tiles(layout) * self.features_per_tile for layout in layouts]
        whole = self.rows_per_tile
        pieces = [(image, 0, end) for image, end in enumerate(ends)]
        pieces += [(image, end, whole) for image, end in enumerate(ends) if end < whole]
        behind = np.cumsum([0, *ends])
        seen = np.tile(np.array([0, len(layouts) * whole, 0], np.int64), (num_tokens, 1))
        first = 0
        for at, span in enumerate(spans):
            if at and span.start != spans[at - 1].start + 1:
                first = at
            seen[span.start :] = behind[first], behind[at + 1], 1
        return Memory(tuple(pieces), seen)

    def _num_tiles(self, layout: TileLayout) -> int:
        if layout.whole_px is None:
            return 1
        height, width = layout.whole_px
        return (height // self.tile_px) * (width // self.tile_px)
