"""Drawings of many sizes and looks: what stands where, and how it is drawn. Wider than `layout`'s scenes.

A picture holds shapes, words and handwritten digits that do not touch, on plain, shaded or patterned ground, from 64 to
512 pixels a side. Places are shares of the picture's width and height, from its top left corner, because models see it
squeezed to a square. Sizes and fonts of `HELD_OUT` never occur in training.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pathlib
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reference.drawing import SHAPES, digit_images, digit_mask, shape_mask

COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((220, 35, 35), (255, 0, 0), (200, 20, 40)),
    "orange": ((250, 140, 20), (255, 165, 0), (240, 120, 30)),
    "yellow": ((240, 215, 40), (255, 255, 0), (250, 220, 80)),
    "green": ((35, 150, 50), (0, 128, 0), (0, 200, 0), (60, 170, 90)),
    "cyan": ((60, 205, 215), (0, 255, 255), (40, 190, 200)),
    "blue": ((35, 60, 215), (0, 0, 255), (40, 90, 200)),
    "purple": ((140, 45, 170), (128, 0, 128), (120, 40, 200)),
    "black": ((25, 25, 25), (0, 0, 0)),
    "white": ((255, 255, 255), (245, 245, 245)),
    "pink": ((255, 130, 180), (255, 192, 203), (250, 105, 180)),
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FIGURES = "23456789"  # 0 and 1 are near twins of O and I
WORDS = (
    "STOP", "GO", "EXIT", "OPEN", "SALE", "HELLO", "WORLD", "FISH", "CAT", "DOG", "BREAD", "MILK", "TEA", "COFFEE",
    "WATER", "APPLE", "LEMON", "GARDEN", "WINDOW", "SCHOOL", "MUSIC", "SUMMER", "WINTER", "PARIS", "LONDON", "TOKYO",
    "BERLIN", "TRAIN", "STATION", "TICKET", "MARKET", "FLOWER", "BUTTER", "CHEESE", "ORANGE", "SILVER", "GOLD",
    "HOTEL", "TAXI", "POLICE", "DOCTOR", "LIBRARY", "MOUNTAIN", "RIVER", "BRIDGE", "ISLAND", "CASTLE", "KITCHEN",
    "PICTURE", "MODEL", "VISION", "POCKET", "LIGHT", "NIGHT", "MORNING", "SUNDAY", "MONDAY", "FRIDAY", "SPRING",
    "AUTUMN", "PRIVATE", "DANGER", "QUIET", "ZEBRA", "JUMP", "FOX", "BOX", "QUIZ", "KEY",
)  # fmt: skip
HELD_OUT_WORDS = (
    "CHOCOLATE", "ELEPHANT", "UMBRELLA", "PIZZA", "GUITAR", "WELCOME", "PHARMACY", "BAKERY", "MUSEUM", "AIRPORT",
    "SATURDAY", "JUNGLE", "VOYAGE", "WIZARD", "ROBOT", "PLANET", "COPPER", "VELVET", "HARBOUR", "NUMBER", "OFFICE",
    "TEMPLE", "SHOP", "NORTH", "BLACKBIRD",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Looks:
    """What training and the held-out sets draw with, apart from each other.

    Attributes:
        sides_px: Widths and heights.
        fonts: File names in matplotlib's fonts; "" is Pillow's own.
        words: What is written, besides letters at random.
        digit_split: Of scikit-learn's handwritten digits.
        grounds: Behind what is shown, where that is not plain.
    """

    sides_px: tuple[int, ...]
    fonts: tuple[str, ...]
    words: tuple[str, ...]
    digit_split: str
    grounds: tuple[str, ...] = ("shade", "stripes", "checks", "grain")


TRAINING = Looks(
    (64, 80, 96, 112, 128, 128, 144, 160, 176, 192, 224, 224, 256, 256, 288, 320, 384, 448, 512),
    ("", "", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "cmr10.ttf", "STIXGeneralBol.ttf"),
    WORDS,
    "train",
)
HELD_OUT = Looks(
    (72, 100, 120, 136, 200, 240, 300, 400, 480, 500),
    ("DejaVuSerif.ttf", "DejaVuSansMono-Bold.ttf", "cmss10.ttf"),
    HELD_OUT_WORDS,
    "test",
)
UNSEEN_GROUNDS = dataclasses.replace(HELD_OUT, grounds=("rings", "bricks"))
"""`HELD_OUT`, on grounds that training never has either."""
_SMALL_SHARE, _LARGE_SHARE, _HUGE_SHARE = (0.14, 0.19), (0.26, 0.34), (0.36, 0.62)  # of the shorter side
_DIGIT_SHARE = (0.34, 0.6)
_GAP_SHARE = 0.03
_TRIES = 40
_MIN_CONTRAST = 110  # distance in RGB between a thing and the ground


@dataclasses.dataclass(frozen=True)
class Item:
    """One shape, word or handwritten digit; `sample` fills every field.

    Attributes:
        kind: "shape", "text" or "digit".
        name: The shape's name, the word, or the digit.
        colour: One of `COLOURS`.
        tint: The colour as drawn.
        size: "small" or "large" for shapes, else "".
        box: (left, top, right, bottom), shares of width and height.
        detail: The font's file name of a word, the row in the split of a digit, else "".
    """

    kind: str
    name: str
    colour: str
    tint: tuple[int, int, int]
    size: str
    box: tuple[float, float, float, float]
    detail: str = ""

    @property
    def centre(self) -> tuple[float, float]:
        """Return (x, y) of the middle, shares of width and height."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclasses.dataclass(frozen=True)
class Picture:
    """All that is needed to draw it again."""

    size_px: tuple[int, int]
    items: tuple[Item, ...]
    ground: str  # "plain" or one of the looks'
    ground_tints: tuple[tuple[int, int, int], tuple[int, int, int]]
    digit_split: str

    @property
    def shapes(self) -> list[Item]:
        """Return the shapes, in the order of placement."""
        return [item for item in self.items if item.kind == "shape"]

    def first(self, kind: str) -> Item | None:
        """Return the first word or digit, or None."""
        return next((item for item in self.items if item.kind == kind), None)


@dataclasses.dataclass
class _Canvas:
    """A picture that is being filled."""

    rng: random.Random
    looks: Looks
    size_px: tuple[int, int]
    ground: str
    ground_tints: tuple[tuple[int, int, int], tuple[int, int, int]]
    items: list[Item]

    def place(self, width_px: float, height_px: float) -> tuple[float, float, float, float] | None:
        """Return a free box of this size, in shares, or None when none was found."""
        width, height = width_px / self.size_px[0], height_px / self.size_px[1]
        if width > 0.97 or height > 0.97:
            return None
        for _ in range(_TRIES):
            left, top = self.rng.uniform(0.01, 0.99 - width), self.rng.uniform(0.01, 0.99 - height)
            box = (left, top, left + width, top + height)
            if all(_is_apart(box, item.box) for item in self.items):
                return box
        return None

    def tint(self, colours: list[str]) -> tuple[str, tuple[int, int, int]]:
        """Return a colour of these that stands out from the ground, and its tint."""
        for _ in range(_TRIES):
            colour = self.rng.choice(colours)
            anchor = self.rng.choice(COLOURS[colour])
            tint = _jittered(self.rng, anchor, 10)
            if all(math.dist(tint, ground) > _MIN_CONTRAST for ground in self.ground_tints):
                return colour, tint
        colour = "black" if sum(self.ground_tints[0]) > 380 else "white"
        return colour, COLOURS[colour][0]

    def add_shape(self, name: str, colours: list[str], size: str, share: tuple[float, float]) -> None:
        """Add a shape where there is room."""
        side_px = max(9.0, self.rng.uniform(*share) * min(self.size_px))
        box = self.place(side_px, side_px)
        if box is not None:
            self.items.append(Item("shape", name, *self.tint(colours), size, box))

    def add_digit(self) -> None:
        """Add a handwritten digit where there is room."""
        labels = digit_images(self.looks.digit_split)[1]
        index = self.rng.randrange(len(labels))
        side_px = self.rng.uniform(*_DIGIT_SHARE) * min(self.size_px)
        box = self.place(side_px, side_px)
        if box is not None:
            self.items.append(Item("digit", str(labels[index]), *self.tint(list(COLOURS)), "", box, str(index)))

    def add_word(self, word: str) -> None:
        """Add a word, as large as fits or smaller, where there is room."""
        font = self.rng.choice(self.looks.fonts)
        widest_px = self.size_px[0] * self.rng.uniform(0.55, 0.95)
        font_px = min(self.size_px[1] * self.rng.uniform(0.16, 0.3), widest_px / (0.66 * len(word)))
        box_px = word_box(word, font, max(8, int(font_px)))
        box = self.place(*box_px)
        if box is not None:
            self.items.append(Item("text", word, *self.tint(list(COLOURS)), "", box, font))


def _is_apart(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return (
        box[2] + _GAP_SHARE <= other[0]
        or other[2] + _GAP_SHARE <= box[0]
        or box[3] + _GAP_SHARE <= other[1]
        or other[3] + _GAP_SHARE <= box[1]
    )


def _jittered(rng: random.Random, tint: tuple[int, int, int], most: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, channel + rng.randint(-most, most))) for channel in tint)
    return red, green, blue


def _ground(
    rng: random.Random, patterns: tuple[str, ...]
) -> tuple[str, tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Return a ground and its one or two tints."""
    draw = rng.random()
    if draw < 0.3:
        base = (255, 255, 255)
    elif draw < 0.6:
        base = _jittered(rng, (235, 235, 235), 20)
    elif draw < 0.8:
        base = _jittered(rng, rng.choice(((230, 215, 190), (200, 220, 240), (215, 235, 205), (240, 215, 225))), 12)
    elif draw < 0.9:
        base = _jittered(rng, (165, 165, 165), 20)
    else:
        base = _jittered(rng, rng.choice(((15, 15, 15), (25, 30, 60), (50, 50, 55))), 8)
    if rng.random() < 0.6:
        return "plain", (base, base)
    return rng.choice(patterns), (base, _jittered(rng, base, 28))


def _blank(rng: random.Random, looks: Looks) -> _Canvas:
    """Return an empty canvas of a random size and ground."""
    width_px = rng.choice(looks.sides_px)
    height_px = width_px
    if rng.random() < 0.25:
        height_px = int(width_px * rng.uniform(0.75, 1.33))
    return _Canvas(rng, looks, (width_px, min(512, max(64, height_px))), *_ground(rng, looks.grounds), [])


def sample(
    rng: random.Random,
    looks: Looks,
    *,
    num_shapes: int = 0,
    words: tuple[str, ...] = (),
    num_digits: int = 0,
    palette: int = len(COLOURS),
    shape_pool: int = len(SHAPES),
) -> Picture:
    """Return a random picture; what finds no free place is left out.

    Args:
        rng: Source of every choice.
        looks: `TRAINING` or `HELD_OUT`.
        num_shapes: Shapes wanted.
        words: Words wanted.
        num_digits: Handwritten digits wanted.
        palette: How many colours shapes may have; few make equals likely.
        shape_pool: How many kinds of shapes there may be.
    """
    canvas = _blank(rng, looks)
    for word in words:
        canvas.add_word(word)
    for _ in range(num_digits):
        canvas.add_digit()
    colours, pool = rng.sample(list(COLOURS), palette), rng.sample(SHAPES, shape_pool)
    is_alone = num_shapes <= 2 and not words and not num_digits
    for _ in range(num_shapes):
        is_large = rng.random() < 0.5
        share = _LARGE_SHARE if is_large else _SMALL_SHARE
        if is_alone and is_large and rng.random() < 0.5:
            share = _HUGE_SHARE
        canvas.add_shape(rng.choice(pool), colours, "large" if is_large else "small", share)
    return Picture(canvas.size_px, tuple(canvas.items), canvas.ground, canvas.ground_tints, looks.digit_split)


def random_word(rng: random.Random, looks: Looks) -> str:
    """Return a word, letters at random, or a few figures."""
    draw = rng.random()
    if draw < 0.5:
        return rng.choice(looks.words)
    if draw < 0.85:
        return "".join(rng.choice(LETTERS) for _ in range(rng.choice((1, 2, 3, 4, 4, 5, 6, 7, 8, 9))))
    return "".join(rng.choice(FIGURES + LETTERS) for _ in range(rng.randint(1, 5)))


@functools.cache
def _font(name: str, size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not name:
        return ImageFont.load_default(size_px)
    import matplotlib

    return ImageFont.truetype(str(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size_px)


@functools.lru_cache(maxsize=4096)
def _letters(word: str, font: str, font_px: int) -> tuple[Image.Image, tuple[float, ...]]:
    """Return the mask of a word cut to its ink, and the middle of each letter as a share of the width."""
    face = _font(font, font_px)
    left, top, right, bottom = face.getbbox(word)
    mask = Image.new("L", (max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))), 0)
    ImageDraw.Draw(mask).text((-left, -top), word, font=face, fill=255)
    starts = [face.getlength(word[:i]) for i in range(len(word) + 1)]
    middles = tuple(((a + b) / 2 - left) / mask.width for a, b in itertools.pairwise(starts))
    return mask, middles


def word_box(word: str, font: str, font_px: int) -> tuple[int, int]:
    """Return width and height in pixels of a word's ink."""
    return _letters(word, font, font_px)[0].size


def letter_middles(item: Item) -> list[float]:
    """Return x of the middle of each letter of a word, shares of the picture's width."""
    width = item.box[2] - item.box[0]
    return [item.box[0] + width * middle for middle in _letters(item.name, item.detail, 48)[1]]


def _mask(picture: Picture, item: Item, width_px: int, height_px: int) -> Image.Image:
    if item.kind == "shape":
        return shape_mask(item.name, width_px).resize((width_px, height_px))
    if item.kind == "digit":
        return digit_mask(picture.digit_split, int(item.detail), width_px).resize((width_px, height_px))
    font_px = max(8, round(height_px * 1.4))
    return _letters(item.name, item.detail, font_px)[0].resize((width_px, height_px), Image.Resampling.LANCZOS)


def _drawn_ground(picture: Picture) -> Image.Image:
    first, second = (np.array(tint, np.float32) for tint in picture.ground_tints)
    width_px, height_px = picture.size_px
    if picture.ground == "plain":
        return Image.new("RGB", picture.size_px, picture.ground_tints[0])
    down, across = np.mgrid[:height_px, :width_px].astype(np.float32)
    step_px = max(4, min(picture.size_px) // 12)
    if picture.ground == "shade":
        share = down / height_px
    elif picture.ground == "stripes":
        share = (across + down) // step_px % 2
    elif picture.ground == "checks":
        share = (across // step_px + down // step_px) % 2
    elif picture.ground == "rings":
        share = np.hypot(across - width_px / 2, down - height_px / 2) // step_px % 2
    elif picture.ground == "bricks":
        share = (down % step_px < 2) | ((across + down // step_px % 2 * step_px) % (2 * step_px) < 2)
    else:
        share = np.random.default_rng(width_px * height_px).random((height_px, width_px), np.float32)
    return Image.fromarray((first + share[..., None] * (second - first)).astype(np.uint8))


def render(picture: Picture) -> Image.Image:
    """Return the picture as RGB, of its own size."""
    image = _drawn_ground(picture)
    width_px, height_px = picture.size_px
    for item in picture.items:
        left, top, right, bottom = item.box
        box_px = round(left * width_px), round(top * height_px), round(right * width_px), round(bottom * height_px)
        mask = _mask(picture, item, max(1, box_px[2] - box_px[0]), max(1, box_px[3] - box_px[1]))
        image.paste(item.tint, box_px[:2], mask)
    return image
