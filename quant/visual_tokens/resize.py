"""Tiles encoded smaller than they could be: fewer tokens, of which each has cost its share of the encoder.

Not a choice among tokens but another picture: every tile is scaled down before the vision encoder, whose positions are
spread over the full tile as Idefics3 does with images smaller than its own (transformers, `Idefics3VisionEmbeddings`).
What other methods drop was encoded in full; here it is not encoded at all. The price is detail that nobody sees.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from bundle.image import TileLayout
from bundle.image_tokens import ReducedImage, Rows, ShownImage
from bundle.manifest import Manifest
from quant.visual_tokens.table import RESIZE, check_keep

_ROUNDING = 1e-9
"""Added to a side before it is rounded down, so that the root of a square number is that number."""


@dataclass(frozen=True)
class Resize:
    """Square tiles of fewer tokens a side, as `bundle.image_tokens.ImageReducer`.

    Args:
        keep: Share of a tile's tokens, and of its pixels, in (0, 1]; the side is rounded down, to one token at least.

    Raises:
        ParameterError: No such share.
    """

    keep: float
    method: str = RESIZE
    needs_tower: bool = False
    needs_text: bool = False

    def __post_init__(self) -> None:
        check_keep(self.keep)

    @property
    def is_whole(self) -> bool:
        """True where nothing changes."""
        return self.keep == 1

    def seen_side(self, num_tokens: int) -> int:
        """Return how many tokens a tile has along one side when it is encoded."""
        return max(math.floor(math.isqrt(num_tokens) * math.sqrt(self.keep) + _ROUNDING), 1)

    def quota(self, num_tokens: int) -> int:
        """Return how many tokens of a tile are read."""
        return self.seen_side(num_tokens) ** 2

    def num_kept(self, layout: TileLayout, tokens_per_tile: int) -> int:
        """Return how many tokens of an image are read."""
        return layout.num_tiles * self.quota(tokens_per_tile)

    def apply(self, image: ShownImage) -> ReducedImage:
        """Return an image that was encoded smaller, each token in the middle of the places that it covers.

        Raises:
            ValueError: It is not told how many places a full tile has, or was encoded otherwise.
        """
        full = image.places_per_tile
        if full is None or image.features.shape[-2] != self.quota(full):
            raise ValueError(f"{self.method} reads images that were encoded smaller, not {image.features.shape}")
        tiles = image.features.reshape(-1, *image.features.shape[-2:])
        along = _middles(self.seen_side(full), math.isqrt(full))
        of_tile = (along[:, None] * math.isqrt(full) + along[None, :]).reshape(-1)
        rows = np.concatenate([of_tile + at * full for at in range(len(tiles))])
        digest = hashlib.sha256(b"resized" + image.digest + rows.tobytes()).digest()
        return ReducedImage(tiles.reshape(-1, tiles.shape[-1]), rows, digest)


def missing(manifest: Manifest) -> str:
    """Return why a bundle cannot encode images smaller, and what to do about it; empty where it can."""
    prompt = manifest.image_prompt
    if prompt is None or manifest.decoder is None:
        return f"{manifest.name} has no images in prompts"
    height = manifest.components[manifest.graph("vision_encoder")].inputs[0].shape[-2]
    side = math.isqrt(prompt.tokens_per_tile)
    if isinstance(height, int) or side * side != prompt.tokens_per_tile or prompt.kind != "idefics3":
        return (
            f"the vision encoder of {manifest.name} takes tiles of one size, or keeps the shape of images: export an "
            "idefics3 or smolvlm checkpoint with --smaller-images, or send smaller images"
        )
    return ""


def _middles(side: int, full: int) -> Rows:
    """Return [side] which of `full` places each of `side` stretches has in its middle."""
    return ((2 * np.arange(side, dtype=np.int64) + 1) * full) // (2 * side)
