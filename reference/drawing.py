"""Stamps: the shapes, characters and handwritten digits that scenes are made of, as alpha masks.

Every mask is a PIL image of mode "L" (255 = covered) and is cached, because a training run pastes
millions of them. Handwritten digits come from scikit-learn's `load_digits` (the UCI set "Optical
Recognition of Handwritten Digits", 1797 images of 8 x 8); one fixed split keeps its test part out of training.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 35),
    "orange": (250, 140, 20),
    "yellow": (240, 215, 40),
    "green": (35, 150, 50),
    "cyan": (60, 205, 215),
    "blue": (35, 60, 215),
    "purple": (140, 45, 170),
    "black": (25, 25, 25),
}
# No O, I, 0, 1: in the font used they are near twins, and a reader could not be blamed for mixing them up.
CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"

_OVERSAMPLING = 4  # masks are drawn this many times larger, then reduced: anti-aliased edges
_DIGIT_TEST_SHARE = 0.25
_DIGIT_SPLIT_SEED = 0


def _polygon(size_px: int, corners: list[tuple[float, float]]) -> Image.Image:
    big_px = size_px * _OVERSAMPLING
    mask = Image.new("L", (big_px, big_px), 0)
    scaled = [(x * (big_px - 1), y * (big_px - 1)) for x, y in corners]
    ImageDraw.Draw(mask).polygon(scaled, fill=255)
    return mask


def _star_corners() -> list[tuple[float, float]]:
    corners = []
    for i in range(10):
        radius = 0.52 if i % 2 == 0 else 0.21
        angle = math.pi * (i / 5 - 0.5)
        corners.append((0.5 + radius * math.cos(angle), 0.53 + radius * math.sin(angle)))
    return corners


def _heart_corners() -> list[tuple[float, float]]:
    """The curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled to the unit square."""
    corners = []
    for i in range(48):
        t = 2 * math.pi * i / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((0.5 + x / 32, 0.45 - y / 32))
    return corners


def _round(size_px: int, hole_share: float) -> Image.Image:
    big_px = size_px * _OVERSAMPLING
    mask = Image.new("L", (big_px, big_px), 0)
    draw = ImageDraw.Draw(mask)
    draw.ellipse((0, 0, big_px - 1, big_px - 1), fill=255)
    if hole_share > 0:
        edge = big_px * (1 - hole_share) / 2
        draw.ellipse((edge, edge, big_px - 1 - edge, big_px - 1 - edge), fill=0)
    return mask


@functools.cache
def shape_mask(shape: str, size_px: int) -> Image.Image:
    """Return the [size_px, size_px] mask of a shape.

    Raises:
        ValueError: The shape is not one of `SHAPES`.
    """
    if shape == "circle":
        mask = _round(size_px, 0.0)
    elif shape == "ring":
        mask = _round(size_px, 0.55)
    elif shape == "square":
        mask = _polygon(size_px, [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)])
    elif shape == "triangle":
        mask = _polygon(size_px, [(0.5, 0.02), (1.0, 0.95), (0.0, 0.95)])
    elif shape == "diamond":
        mask = _polygon(size_px, [(0.5, 0.0), (0.95, 0.5), (0.5, 1.0), (0.05, 0.5)])
    elif shape == "cross":
        low, high = 0.34, 0.66
        mask = _polygon(
            size_px,
            [(low, 0), (high, 0), (high, low), (1, low), (1, high), (high, high),
             (high, 1), (low, 1), (low, high), (0, high), (0, low), (low, low)],
        )  # fmt: skip
    elif shape == "star":
        mask = _polygon(size_px, _star_corners())
    elif shape == "heart":
        mask = _polygon(size_px, _heart_corners())
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    return mask.reduce(_OVERSAMPLING)


@functools.cache
def character_mask(character: str, size_px: int) -> Image.Image:
    """Return the mask of one character in Pillow's bundled font, cut to its ink and at least 14 px wide.

    Args:
        character: One character of `CHARACTERS`.
        size_px: Font size in pixels; capitals are about 0.7 of it high.
    """
    font = ImageFont.load_default(size_px)
    left, top, right, bottom = font.getbbox(character)
    ink_px, height_px = math.ceil(right - left), math.ceil(bottom - top)
    width_px = max(ink_px, 14)
    mask = Image.new("L", (width_px, height_px), 0)
    ImageDraw.Draw(mask).text(((width_px - ink_px) / 2 - left, -top), character, font=font, fill=255)
    return mask


@functools.cache
def digit_images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return handwritten digits and their labels.

    Args:
        split: "train" or "test". The split is fixed and stratified; the test quarter is never trained on.

    Returns:
        [N, 8, 8] uint8 masks (255 = ink) and [N] int64 labels 0..9.

    Raises:
        ValueError: The split is neither "train" nor "test".
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; known: train, test")
    digits = load_digits()
    ink = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train_ink, test_ink, train_labels, test_labels = train_test_split(
        ink, digits.target, test_size=_DIGIT_TEST_SHARE, random_state=_DIGIT_SPLIT_SEED, stratify=digits.target
    )
    return (train_ink, train_labels) if split == "train" else (test_ink, test_labels)


@functools.lru_cache(maxsize=16384)
def digit_mask(split: str, index: int, size_px: int) -> Image.Image:
    """Return handwritten digit `index` of a split, enlarged to [size_px, size_px]."""
    ink = digit_images(split)[0][index]
    return Image.fromarray(ink).resize((size_px, size_px), Image.Resampling.BICUBIC)
