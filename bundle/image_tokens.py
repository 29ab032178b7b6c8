"""An image as rows of features that stand in a prompt: all of them, or what a reducer leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.manifest import Component

Features = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
TOWER_OUTPUTS = (tensors.IMAGE_ATTENTION, tensors.IMAGE_KEYS)
"""Optional outputs of a vision encoder, which some reducers read."""


@dataclass(frozen=True)
class ShownImage:
    """An image as a decoder would read all of it.

    Attributes:
        features: [tiles, P, D], or [P, D] of one tile.
        digest: Of what was encoded: equal images have equal digests.
        has_grid: The tokens of a tile are those of its patches, row by row; a square where they can be.
        tower: [tiles, P, 1 + C], or [P, 1 + C]: the attention that each token receives in the vision tower, then its
            key; only where a reducer needs them.
        text: [N, D] embeddings of the text in the image's message; only where a reducer needs them.
        places_per_tile: Tokens that a full tile has in the prompt, where the image was encoded smaller.
    """

    features: Features
    digest: bytes
    has_grid: bool = True
    tower: Features | None = None
    text: Features | None = None
    places_per_tile: int | None = None


@dataclass(frozen=True)
class ReducedImage:
    """What a decoder reads of an image.

    Attributes:
        features: [n, D].
        rows: [n] rising, the row among all of the image's whose place each of them has.
        digest: Of features and places: equal digests are read alike, where they begin at one position.
    """

    features: Features
    rows: Rows
    digest: bytes


class ImageReducer(Protocol):
    """Chooses or makes what is read of an image; `quant.visual_tokens.reduction.Reduction` does it."""

    @property
    def is_whole(self) -> bool:
        """Return whether all is read, as it is."""

    @property
    def needs_tower(self) -> bool:
        """Return whether it reads `ShownImage.tower`."""

    @property
    def needs_text(self) -> bool:
        """Return whether it reads `ShownImage.text`."""

    def seen_side(self, num_tokens: int) -> int | None:
        """Return how many of a tile's tokens stand along one side when it is encoded; None: it is encoded in full."""

    def apply(self, image: ShownImage) -> ReducedImage:
        """Return what is read of an image, whatever is shown beside it."""


def gives_tower(encoder: Component) -> bool:
    """Return whether a vision encoder can give what `ShownImage.tower` is made of."""
    return {spec.name for spec in encoder.optional_outputs}.issuperset(TOWER_OUTPUTS)
