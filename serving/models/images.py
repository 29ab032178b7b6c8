"""Images and videos on their way to features: decoded, kept, encoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from bundle.frames.plan import FramePlan
from bundle.image import TileLayout
from bundle.question import Asked
from serving.models.cut_image import CutImage

Features = npt.NDArray[Any]


@dataclass(frozen=True)
class Share:
    """How much of a tile's side is encoded, in tokens.

    Attributes:
        part: Of the side.
        whole: Side of a full tile.
    """

    part: int
    whole: int


@dataclass(frozen=True)
class DecodedImage:
    """An image whose size in the prompt is known and whose features are not needed yet.

    Attributes:
        key: SHA-256 over pixels, preprocessing, encoder, `with_tower` and `question`: equal keys have equal features,
            bit for bit.
        cut: Its 8-bit pixels.
        layout: How it is cut into tiles.
        with_tower: What the tower's attention says of it is wanted as well.
        side_px: Of its tiles, where they are encoded smaller than they could be.
        noise_step: How much noise they are encoded under (`bundle.image.noise`), the same whenever; None: under none.
        question: That is read beside them, or the boxes that are looked at; None where the encoder sees images alone.
    """

    key: bytes
    cut: CutImage
    layout: TileLayout
    with_tower: bool = False
    side_px: int | None = None
    noise_step: int | None = None
    question: Asked | None = None

    def under_noise(self, step: int) -> DecodedImage:
        """Return the image under noise, which is encoded and kept by itself."""
        key = hashlib.sha256(self.key + f"noise of step {step}".encode()).digest()
        return replace(self, key=key, noise_step=step)


@dataclass(frozen=True)
class KeptImage:
    """An image whose features are known already, so that it was not decoded.

    Attributes:
        key: As `DecodedImage.key`.
        layout: How it is cut into tiles.
        seen: What the encoder gave, as it is kept.
        with_tower: As `DecodedImage.with_tower`.
    """

    key: bytes
    layout: TileLayout
    seen: Features
    with_tower: bool = False


@dataclass(frozen=True)
class DecodedVideo:
    """A video whose size in the prompt is known and whose features are not needed yet.

    Attributes:
        pictures: To encode, one tile each.
        plan: How they fill the prompt.
        times_s: Of each frame that is looked at.
        duration_s: Of the whole.
        layout: How it stands in the prompt as one; None: as images.
    """

    pictures: tuple[DecodedImage, ...]
    plan: FramePlan
    times_s: tuple[float, ...]
    duration_s: float
    layout: TileLayout | None = None


@dataclass(frozen=True)
class EncodedImage:
    """An image as the encoder sees it, and what that cost.

    Attributes:
        key: As `DecodedImage.key`: equal keys have equal features.
        features: [tiles, P, D] of a vision-language model, [rows, D] where an image is no tiles of one size; [1, E] of
            a dual encoder.
        preprocess_s: Resizing and normalising; 0 where the features were kept.
        vision_s: In the encoder and before it; 0 where the features were kept.
        is_kept: The features were in the cache.
        tower: [tiles, P, 1 + C] as `bundle.image_tokens.ShownImage.tower`, where it was asked for.
        has_grid: Rows are those of a grid of patches.
    """

    key: bytes
    features: Features
    preprocess_s: float = 0.0
    vision_s: float = 0.0
    is_kept: bool = False
    tower: Features | None = None
    has_grid: bool = True

    @property
    def num_rows(self) -> int:
        """Image tokens that it fills."""
        return int(self.features.size // self.features.shape[-1])
