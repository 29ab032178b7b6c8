"""What a reducer sees of one tile, and what it leaves of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.image_tokens import Features as Features
from bundle.image_tokens import Rows as Rows

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TowerView:
    """What a vision tower's attention says of a tile's tokens.

    Attributes:
        received: [P], attention that each token receives: from the class token where the tower has one, else from all
            patches; means over heads.
        keys: [P, C], each token's key in that layer, the mean over heads.
    """

    received: Float32
    keys: Float32


@dataclass(frozen=True)
class Tile:
    """One tile of an image, as the decoder would read it.

    Attributes:
        features: [P, D], of float32 or float16.
        grid: (rows, columns) that the tokens are of, row by row; None where they are of no grid.
        digest: Of what was encoded: equal tiles of equal images have equal digests. Seeds what is drawn by lot.
        tower: Where the method needs it.
        text: [N, D] embeddings of the text that goes with the image; no rows where there is none.
    """

    features: Features
    grid: tuple[int, int] | None = None
    digest: bytes = b""
    tower: TowerView | None = None
    text: Float32 | None = None

    @property
    def num_tokens(self) -> int:
        """P."""
        return len(self.features)

    @property
    def single(self) -> Float32:
        """The features in float32, in which every method reckons."""
        return np.asarray(self.features, np.float32)

    @property
    def generator(self) -> np.random.Generator:
        """A generator that draws the same for the same tile, whoever shares its batch."""
        return np.random.default_rng(int.from_bytes(hashlib.sha256(self.digest).digest()[:8], "big"))


@dataclass(frozen=True)
class Kept:
    """What is left of a tile.

    Attributes:
        features: [n, D], of the tile's type.
        rows: [n] rising, the tile's row whose place each of them has.
        sizes: [n] tokens that went into each; 1 of those that are as they were.
    """

    features: Features
    rows: Rows
    sizes: Rows


Reducer = Callable[[Tile, int], Kept]
"""Returns exactly so many tokens of a tile."""


def chosen(tile: Tile, rows: npt.ArrayLike) -> Kept:
    """Return some of a tile's tokens, bit for bit as they are."""
    of_tile = np.sort(np.asarray(rows, np.int64))
    return Kept(tile.features[of_tile], of_tile, np.ones(len(of_tile), np.int64))


def merged(tile: Tile, groups: npt.ArrayLike) -> Kept:
    """Return the mean of each group of a tile's tokens, in the place of its first.

    Args:
        tile: The tile.
        groups: [P] the group of each token, counted from 0; none is empty.
    """
    labels = np.asarray(groups, np.int64)
    sizes = np.bincount(labels)
    sums = group_sums(tile.single, labels, len(sizes))
    firsts = np.full(len(sizes), tile.num_tokens, np.int64)
    np.minimum.at(firsts, labels, np.arange(tile.num_tokens))
    order = np.argsort(firsts)
    means = (sums / sizes[:, None])[order].astype(tile.features.dtype)
    return Kept(means, firsts[order], sizes[order])


def group_sums(vectors: Float32, groups: Rows, num: int) -> Float32:
    """Return [num, D], the sum of each group's vectors [P, D]; zeros of a group without any."""
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)
    sums = np.zeros((num, vectors.shape[1]), np.float32)
    if len(order):
        sums[present] = np.add.reduceat(vectors[order], starts, axis=0)
    return sums


def unit(vectors: npt.ArrayLike) -> Float32:
    """Return rows of length 1, so that their products are cosines; a row of zeros stays one."""
    rows = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    directions: Float32 = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return directions


def highest(scores: npt.ArrayLike, num: int) -> Rows:
    """Return where the largest scores are, the largest first; of equal ones the first."""
    return np.argsort(-np.asarray(scores), kind="stable")[:num].astype(np.int64)
