"""A reducer applied to the tiles of images: how many tokens stay is known beforehand, and which once they are there."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.image import TileLayout
from bundle.image_tokens import ReducedImage, Rows, ShownImage
from quant.visual_tokens.table import check_keep, entry_of, load_reducer
from quant.visual_tokens.tile import Features, Kept, Reducer, Tile, TowerView


@dataclass(frozen=True)
class Reduction:
    """A method and a share, checked.

    Args:
        method: A name of `quant.visual_tokens.table`.
        keep: Share of each tile's tokens that stays, in (0, 1].

    Raises:
        ParameterError: No such method, or no such share; the message names the field.
    """

    method: str
    keep: float

    def __post_init__(self) -> None:
        entry_of(self.method)
        check_keep(self.keep)

    @property
    def needs_tower(self) -> bool:
        """Whether the method reads the vision tower's attention."""
        return entry_of(self.method).needs_tower

    @property
    def needs_text(self) -> bool:
        """Whether the method reads the text that goes with an image."""
        return entry_of(self.method).needs_text

    @property
    def is_whole(self) -> bool:
        """True where nothing changes."""
        return self.keep == 1

    def seen_side(self, num_tokens: int) -> None:
        """Return None: tiles are encoded in full."""

    def quota(self, num_tokens: int) -> int:
        """Return how many tokens of a tile stay: the share, as it is written, rounded up."""
        return math.ceil(Decimal(repr(float(self.keep))) * num_tokens)

    def num_kept(self, layout: TileLayout, tokens_per_tile: int) -> int:
        """Return how many tokens of an image stay."""
        if layout.fewer_tokens is not None:
            return self.quota(layout.fewer_tokens)
        return layout.num_tiles * self.quota(tokens_per_tile)

    def apply(self, image: ShownImage) -> ReducedImage:
        """Return an image with so many tokens of each tile; the same whatever else is reduced beside it.

        Raises:
            ValueError: What the method needs is not there.
        """
        tiles = image.features.reshape(-1, *image.features.shape[-2:])
        tower = None if image.tower is None else image.tower.reshape(len(tiles), -1, image.tower.shape[-1])
        kept = [self._of_tile(image, at, tile, None if tower is None else tower[at]) for at, tile in enumerate(tiles)]
        rows = np.concatenate([each.rows + at * tiles.shape[1] for at, each in enumerate(kept)])
        features = np.concatenate([each.features for each in kept])
        return ReducedImage(features, rows, _digest(image.digest, rows, kept))

    @cached_property
    def _reduce(self) -> Reducer:
        return load_reducer(self.method)

    def _of_tile(self, image: ShownImage, at: int, features: Features, tower: Features | None) -> Kept:
        quota = self.quota(len(features))
        if quota == len(features):
            return Kept(features, np.arange(quota, dtype=np.int64), np.ones(quota, np.int64))
        if (self.needs_tower and tower is None) or (self.needs_text and image.text is None):
            raise ValueError(f"{self.method} needs what the image comes without: see quant.visual_tokens.table")
        view = None if tower is None else TowerView(tower[:, 0], tower[:, 1:])
        grid = _square(len(features)) if image.has_grid else None
        return self._reduce(Tile(features, grid, image.digest + at.to_bytes(4, "big"), view, image.text), quota)


def digest_of(arrays: Sequence[npt.NDArray[Any]]) -> bytes:
    """Return the SHA-256 of arrays' bytes and shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.digest()


def _square(num_tokens: int) -> tuple[int, int] | None:
    side = math.isqrt(num_tokens)
    return (side, side) if side * side == num_tokens else None


def _digest(image: bytes, rows: Rows, kept: Sequence[Kept]) -> bytes:
    """Return what decides the rows that a decoder makes of a reduced image.

    Rows as they were are those of the image; merged ones may depend on method and text, and speak for themselves.
    """
    changed = [each.features[each.sizes > 1] for each in kept if (each.sizes > 1).any()]
    return hashlib.sha256(b"reduced" + image + digest_of([rows, *(each.sizes for each in kept), *changed])).digest()
