"""Scenes: what stands where, drawn to pixels and to dense labels, from one random stream.

A scene holds shapes, texts and handwritten digits, none of them touching.
Positions are pixels from the top left corner.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np
from PIL import Image

from reference.drawing import CHARACTERS, COLOURS, SHAPES, character_mask, digit_images, digit_mask, shape_mask

IMAGE_PX = 128
PATCH_PX = 8
GRID = IMAGE_PX // PATCH_PX

SIZES_PX = {"small": (18, 20, 22), "large": (34, 37, 40)}
TEXT_SIZES_PX = (26, 29, 32)
DIGIT_SIZES_PX = (48, 56, 64, 72)
_GAP_PX = 4
_PLACEMENT_TRIES = 40
_MAX_JITTER = 14  # of each colour channel, out of 255

# Dense classes: 0 is background, then shapes, characters and digits.
KIND_CLASSES = ("background", *SHAPES, *CHARACTERS, *(f"digit {d}" for d in range(10)))
COLOUR_CLASSES = ("none", *COLOURS)
SIZE_CLASSES = ("none", *SIZES_PX)
_FIRST_CHARACTER = 1 + len(SHAPES)
_FIRST_DIGIT = _FIRST_CHARACTER + len(CHARACTERS)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape, text or digit in a scene; `place` fills the box, `Scene` sampling the rest."""

    kind: str  # "shape", "text" or "digit"
    name: str  # the shape's name, the characters, or the digit
    colour: str
    size: str  # "small" or "large" for shapes, "" otherwise
    size_px: int
    left_px: int
    top_px: int
    width_px: int
    height_px: int
    digit_index: int = -1  # row in the digit split

    @property
    def centre_px(self) -> tuple[float, float]:
        """Return the (x, y) of the middle of the box."""
        return self.left_px + self.width_px / 2, self.top_px + self.height_px / 2


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything needed to draw one image again."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]
    tints: tuple[tuple[int, int, int], ...]  # per thing, its colour after jitter
    digit_split: str

    @property
    def shapes(self) -> list[Thing]:
        """Return the shapes, in placement order."""
        return [t for t in self.things if t.kind == "shape"]

    def first(self, kind: str) -> Thing | None:
        """Return the first text or digit of the scene, or None."""
        return next((t for t in self.things if t.kind == kind), None)


def _place(
    rng: random.Random, boxes: list[tuple[int, int, int, int]], width: int, height: int
) -> tuple[int, int] | None:
    for _ in range(_PLACEMENT_TRIES):
        left = int(rng.random() * (IMAGE_PX - width - 3)) + 2
        top = int(rng.random() * (IMAGE_PX - height - 3)) + 2
        if all(
            left + width + _GAP_PX <= x
            or x + w + _GAP_PX <= left
            or top + height + _GAP_PX <= y
            or y + h + _GAP_PX <= top
            for x, y, w, h in boxes
        ):
            boxes.append((left, top, width, height))
            return left, top
    return None


def _text_box(text: str, size_px: int) -> tuple[int, int]:
    masks = [character_mask(c, size_px) for c in text]
    return sum(m.width + 2 for m in masks) - 2, max(m.height for m in masks)


def sample_scene(
    rng: random.Random,
    num_shapes: int,
    *,
    texts: tuple[str, ...] = (),
    num_digits: int = 0,
    digit_split: str = "train",
    palette: int = len(COLOURS),
    shape_pool: int = len(SHAPES),
) -> Scene:
    """Return a random scene; what finds no free place after 40 tries is left out.

    Args:
        rng: Source of every choice.
        num_shapes: Shapes wanted, 0 to 6.
        texts: Texts to write; questions need at most one, dense training takes more.
        num_digits: Handwritten digits wanted.
        digit_split: "train" or "test".
        palette: How many colours the shapes may share; few make repeats likely.
        shape_pool: How many kinds of shapes there may be.
    """
    colours = rng.sample(list(COLOURS), palette)
    pool = rng.sample(SHAPES, shape_pool)
    boxes: list[tuple[int, int, int, int]] = []
    things: list[Thing] = []
    for _ in range(num_digits):
        size_px = rng.choice(DIGIT_SIZES_PX)
        index = rng.randrange(len(digit_images(digit_split)[1]))
        name = str(digit_images(digit_split)[1][index])
        spot = _place(rng, boxes, size_px, size_px)
        if spot is not None:
            things.append(Thing("digit", name, rng.choice(list(COLOURS)), "", size_px, *spot, size_px, size_px, index))
    for text in texts:
        size_px = rng.choice(TEXT_SIZES_PX)
        width, height = _text_box(text, size_px)
        spot = _place(rng, boxes, width, height)
        if spot is not None:
            things.append(Thing("text", text, rng.choice(list(COLOURS)), "", size_px, *spot, width, height))
    for _ in range(num_shapes):
        size = rng.choice(("small", "large"))
        size_px = rng.choice(SIZES_PX[size])
        spot = _place(rng, boxes, size_px, size_px)
        if spot is not None:
            things.append(Thing("shape", rng.choice(pool), rng.choice(colours), size, size_px, *spot, size_px, size_px))
    base = 222 + int(rng.random() * 22)
    background = tuple(base + int(rng.random() * 12) for _ in range(3))
    tints = tuple(tuple(_jitter(rng, c) for c in COLOURS[t.colour]) for t in things)
    return Scene(tuple(things), background, tints, digit_split)  # type: ignore[arg-type]


def _jitter(rng: random.Random, channel: int) -> int:
    return min(255, max(0, channel + int((rng.random() * 2 - 1) * _MAX_JITTER)))


def random_text(rng: random.Random) -> str:
    """Return 1 to 4 characters."""
    return "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(1, 4)))


def _stamps(scene: Scene, thing: Thing) -> list[tuple[Image.Image, int, int, int]]:
    """Return (mask, left, top, dense class) of every stamp of a thing."""
    if thing.kind == "shape":
        mask = shape_mask(thing.name, thing.size_px)
        return [(mask, thing.left_px, thing.top_px, 1 + SHAPES.index(thing.name))]
    if thing.kind == "digit":
        mask = digit_mask(scene.digit_split, thing.digit_index, thing.size_px)
        return [(mask, thing.left_px, thing.top_px, _FIRST_DIGIT + int(thing.name))]
    stamps, left = [], thing.left_px
    for character in thing.name:
        mask = character_mask(character, thing.size_px)
        stamps.append((mask, left, thing.top_px, _FIRST_CHARACTER + CHARACTERS.index(character)))
        left += mask.width + 2
    return stamps


def render(scene: Scene) -> Image.Image:
    """Return the scene as an RGB image of 128 x 128 pixels."""
    image = Image.new("RGB", (IMAGE_PX, IMAGE_PX), scene.background)
    for thing, tint in zip(scene.things, scene.tints, strict=True):
        for mask, left, top, _ in _stamps(scene, thing):
            image.paste(tint, (left, top), mask)
    return image


def dense_labels(scene: Scene) -> np.ndarray:
    """Return what each patch shows: [4, 16, 16] uint8, planes kind, colour, size and centre.

    A patch belongs to a stamp when its middle lies in the stamp's box. The centre plane is 1 in the one
    patch that holds a shape's or character's middle, which is what counting needs.
    """
    labels = np.zeros((4, GRID, GRID), dtype=np.uint8)
    half = PATCH_PX // 2 - 1
    for thing in scene.things:
        colour = COLOUR_CLASSES.index(thing.colour)
        size = SIZE_CLASSES.index(thing.size) if thing.size else 0
        for mask, left, top, kind in _stamps(scene, thing):
            rows = slice((top + half) // PATCH_PX, (top + mask.height + half) // PATCH_PX)
            columns = slice((left + half) // PATCH_PX, (left + mask.width + half) // PATCH_PX)
            labels[0, rows, columns] = kind
            labels[1, rows, columns] = colour
            labels[2, rows, columns] = size
            labels[3, (top + mask.height // 2) // PATCH_PX, (left + mask.width // 2) // PATCH_PX] = 1
    return labels
