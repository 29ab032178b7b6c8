"""What a layout makes of frames: which pictures are encoded, and what of their features stands in the prompt."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """One image for the encoder: a frame, or several in a grid.

    Attributes:
        frames: Which of the chosen frames, row by row; cells without one are black.
        rows: Of the grid.
        cols: Of the grid.
        is_group: They are no grid: the encoder takes them one behind the other, as one tile.
    """

    frames: tuple[int, ...]
    rows: int = 1
    cols: int = 1
    is_group: bool = False

    @classmethod
    def grid(cls, frames: Sequence[int]) -> Picture:
        """Return frames in the grid that is nearest to a square, rather wide than high."""
        cols = math.ceil(math.sqrt(len(frames)))
        return cls(tuple(frames), math.ceil(len(frames) / cols), cols)


@dataclass(frozen=True)
class Place(ABC):
    """One image of the prompt, filled with rows of pictures' features.

    Attributes:
        pictures: Which pictures it is made of.
        num_tokens: That it takes.
        frame: The frame that it shows, where it is one.

    Class attributes:
        has_grid: Its rows are those of a picture's grid, or of a coarser one.
    """

    pictures: tuple[int, ...]
    num_tokens: int
    frame: int | None = None
    has_grid: ClassVar[bool] = True

    @abstractmethod
    def filled(self, features: Sequence[Features]) -> Features:
        """Return [num_tokens, D] of its pictures' features, each [P, D]."""

    def key(self, keys: Sequence[bytes]) -> bytes:
        """Return what decides its features, made of what decides those of its pictures."""
        told = f"{type(self).__name__} {self.num_tokens}".encode()
        return hashlib.sha256(b"|".join((told, *keys))).digest()


@dataclass(frozen=True)
class Whole(Place):
    """One picture as the encoder gives it."""

    def filled(self, features: Sequence[Features]) -> Features:
        """Return them as they are."""
        return features[0]

    def key(self, keys: Sequence[bytes]) -> bytes:
        """Return the picture's."""
        return keys[0]


@dataclass(frozen=True)
class Joined(Place):
    """All rows of several pictures, one after the other."""

    has_grid: ClassVar[bool] = False

    def filled(self, features: Sequence[Features]) -> Features:
        """Return them, picture after picture."""
        return np.concatenate(features)


@dataclass(frozen=True)
class Sampled(Place):
    """Rows of several pictures, one after the other, evenly chosen."""

    has_grid: ClassVar[bool] = False

    def filled(self, features: Sequence[Features]) -> Features:
        """Return `num_tokens` of all rows, from the first to the last."""
        rows: Features = np.concatenate(features)
        return np.take(rows, np.linspace(0, len(rows) - 1, self.num_tokens).astype(int), axis=0)


@dataclass(frozen=True)
class Pooled(Place):
    """A picture whose square grid of rows is averaged to a smaller square."""

    def filled(self, features: Sequence[Features]) -> Features:
        """Return means over the t x t cells of s x s: cell i spans rows floor(i s / t) to ceil((i + 1) s / t)."""
        side, smaller = math.isqrt(len(features[0])), math.isqrt(self.num_tokens)
        if side == smaller:
            return features[0]
        shares = _shares(side, smaller)
        lines = shares @ features[0].reshape(side, -1)  # means of rows, and then of columns: cells are rectangles
        cells: Features = shares @ lines.reshape(smaller, side, -1)
        return cells.reshape(self.num_tokens, -1).astype(features[0].dtype, copy=False)


def _shares(side: int, smaller: int) -> Features:
    """Return [smaller, side]: what each of `side` lines has in each cell of one axis."""
    shares = np.zeros((smaller, side), np.float32)
    for cell in range(smaller):
        start, end = cell * side // smaller, -(-(cell + 1) * side // smaller)
        shares[cell, start:end] = 1 / (end - start)
    return shares


@dataclass(frozen=True)
class FramePlan:
    """A layout of some frames, known before any of them is decoded.

    Attributes:
        pictures: What is encoded.
        places: What stands in the prompt, in order.
    """

    pictures: tuple[Picture, ...]
    places: tuple[Place, ...]

    @property
    def num_tokens(self) -> int:
        """Image tokens of the prompt."""
        return sum(place.num_tokens for place in self.places)

    @property
    def tells_times(self) -> bool:
        """Whether each place is one frame, so that a prompt can say when it was."""
        return all(place.frame is not None for place in self.places)
