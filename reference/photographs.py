"""Photographs that come with scikit-image and scikit-learn, with captions and answers written for this project.

There are nineteen of them, and a model trained on them knows these by heart: it has not learnt to see photographs.
Crops with `is_held_out` lie apart from training's, of the same photographs.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
import random

from PIL import Image, ImageEnhance, ImageOps

from reference.enquiries import Enquiry
from reference.wordings import worded

_SKIMAGE, _SKLEARN = "skimage/data", "sklearn/datasets/images"
_DESCRIBE_SHARE = 0.5
_CROP_SHARE = (0.7, 1.0)  # of the sides, in training
_HELD_OUT_CROP_SHARE = 0.82


@dataclasses.dataclass(frozen=True)
class Photograph:
    """One photograph.

    Attributes:
        file: Where it lies in its package.
        caption: What it shows.
        key: What a right description says.
        asked: Questions, answers and what a right reply says.
    """

    file: str
    caption: str
    key: str
    asked: tuple[tuple[str, str, str], ...]


def _of(package: str, name: str, caption: str, key: str, *asked: tuple[str, str, str]) -> Photograph:
    return Photograph(f"{package}/{name}", caption, key, asked)


PHOTOGRAPHS = (
    _of(_SKIMAGE, "astronaut.png", "The picture shows a smiling astronaut in an orange space suit.", "astronaut",
        ("What color is the suit?", "The suit is orange.", "orange"),
        ("Who is in the picture?", "It is an astronaut, a smiling woman.", "astronaut"),
        ("What is behind her?", "There is a flag and a space shuttle behind her.", "flag")),
    _of(_SKIMAGE, "brick.png", "The picture shows a wall of gray bricks.", "bricks",
        ("What is the wall made of?", "The wall is made of bricks.", "bricks"),
        ("Is there a person?", "No, there is only a brick wall.", "no")),
    _of(_SKIMAGE, "camera.png", "The picture shows a man with a camera on a tripod.", "camera",
        ("What is the man doing?", "The man is taking a picture with a camera.", "camera"),
        ("Is the picture in color?", "No, the picture is black and white.", "no"),
        ("What does the camera stand on?", "The camera stands on a tripod.", "tripod")),
    _of(_SKIMAGE, "chelsea.png", "The picture shows the face of a cat with green eyes.", "cat",
        ("What animal is this?", "It is a cat.", "cat"),
        ("What color are the eyes?", "The eyes are green.", "green"),
        ("Is there a dog?", "No, it is a cat.", "no")),
    _of(_SKIMAGE, "coffee.png", "The picture shows a cup of coffee on a red saucer.", "coffee",
        ("What is in the cup?", "There is coffee in the cup.", "coffee"),
        ("What lies beside the cup?", "There is a spoon beside the cup.", "spoon"),
        ("What is the table made of?", "The table is made of wood.", "wood")),
    _of(_SKIMAGE, "coins.png", "The picture shows rows of old coins.", "coins",
        ("How many rows are there?", "There are four rows of coins.", "four"),
        ("Are the coins new?", "No, the coins are old.", "old")),
    _of(_SKIMAGE, "grass.png", "The picture shows grass from above.", "grass",
        ("What grows here?", "It is grass.", "grass"),
        ("Is the picture in color?", "No, the picture is black and white.", "no")),
    _of(_SKIMAGE, "gravel.png", "The picture shows gravel, many small stones.", "gravel",
        ("What is on the ground?", "There is gravel on the ground.", "gravel"),
        ("Are the stones big?", "No, the stones are small.", "small")),
    _of(_SKIMAGE, "horse.png", "The picture shows a black horse on a white background.", "horse",
        ("What animal is this?", "It is a horse.", "horse"),
        ("What color is the horse?", "The horse is black.", "black"),
        ("What color is the background?", "The background is white.", "white")),
    _of(_SKIMAGE, "hubble_deep_field.jpg", "The picture shows many galaxies in dark space.", "galaxies",
        ("Where was it taken?", "It was taken in space.", "space"),
        ("What are the bright spots?", "The bright spots are galaxies.", "galaxies")),
    _of(_SKIMAGE, "ihc.png", "The picture shows tissue under a microscope, in brown and blue.", "tissue",
        ("What was it taken with?", "It was taken with a microscope.", "microscope"),
        ("Which colors do you see?", "I see brown and blue.", "brown")),
    _of(_SKIMAGE, "moon.png", "The picture shows the surface of the moon with craters.", "moon",
        ("What are the round holes?", "The round holes are craters.", "craters"),
        ("Is there water?", "No, it is the dry surface of the moon.", "no")),
    _of(_SKIMAGE, "motorcycle_left.png", "The picture shows a red motorcycle in a garage.", "motorcycle",
        ("What color is the motorcycle?", "The motorcycle is red.", "red"),
        ("Where does it stand?", "It stands in a garage.", "garage"),
        ("What vehicle is this?", "It is a motorcycle.", "motorcycle")),
    _of(_SKIMAGE, "page.png", "The picture shows a printed page of a book.", "page",
        ("What is the title?", "The title is Region-based segmentation.", "segmentation"),
        ("Is it printed or written by hand?", "The page is printed.", "printed")),
    _of(_SKIMAGE, "retina.jpg", "The picture shows the retina of an eye with its blood vessels.", "retina",
        ("What part of the body is this?", "It is the retina of an eye.", "eye"),
        ("What are the thin lines?", "The thin lines are blood vessels.", "vessels")),
    _of(_SKIMAGE, "rocket.jpg", "The picture shows a rocket on its launch pad at night.", "rocket",
        ("Is it day or night?", "It is night.", "night"),
        ("What stands in the middle?", "There is a rocket in the middle.", "rocket")),
    _of(_SKIMAGE, "text.png", "The picture shows formulas written by hand on paper.", "formulas",
        ("Is it printed or written by hand?", "It is written by hand.", "hand"),
        ("What is written?", "There are formulas on the paper.", "formulas")),
    _of(_SKLEARN, "china.jpg", "The picture shows a Chinese tower with red walls above a lake.", "tower",
        ("What building is this?", "It is a Chinese tower.", "tower"),
        ("What is in the background?", "There is a lake in the background.", "lake")),
    _of(_SKLEARN, "flower.jpg", "The picture shows an orange flower before green leaves.", "flower",
        ("What color is the flower?", "The flower is orange.", "orange"),
        ("What is behind the flower?", "There are green leaves behind the flower.", "leaves")),
)  # fmt: skip


@functools.cache
def opened(file: str) -> Image.Image:
    """Return a photograph as RGB, at most 512 pixels a side.

    Args:
        file: As in `Photograph`: a package and a path in it.
    """
    package, rest = file.split("/", 1)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{file} comes with the package {package}, which is not installed; pip install it")
    with Image.open(pathlib.Path(spec.origin).parent / rest) as image:
        small = image.convert("RGB")
    small.thumbnail((512, 512))
    return small


def view(index: int, rng: random.Random, *, is_held_out: bool) -> Image.Image:
    """Return a crop of photograph `index`: training's vary in place, size, brightness and mirroring.

    Held-out crops have one size that training crops rarely have, and a colour balance that they never have.
    """
    image = opened(PHOTOGRAPHS[index].file)
    share = _HELD_OUT_CROP_SHARE if is_held_out else rng.uniform(*_CROP_SHARE)
    width, height = round(image.width * share), round(image.height * share)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    crop = image.crop((left, top, left + width, top + height))
    if is_held_out:
        return ImageEnhance.Color(ImageEnhance.Contrast(crop).enhance(0.75)).enhance(0.8)
    if rng.random() < 0.3 and "page" not in PHOTOGRAPHS[index].file:
        crop = ImageOps.mirror(crop)
    return ImageEnhance.Brightness(crop).enhance(rng.uniform(0.8, 1.2))


def enquiry(index: int, rng: random.Random, *, is_held_out: bool) -> Enquiry:
    """Return a question about photograph `index`; descriptions are asked for in training's or held-out wordings."""
    photograph = PHOTOGRAPHS[index]
    if rng.random() < _DESCRIBE_SHARE:
        question = worded("describe", rng, is_held_out=is_held_out)
        return Enquiry("photograph", question, photograph.caption, (photograph.key,))
    question, answer, key = rng.choice(photograph.asked)
    return Enquiry("photograph", question, answer, (key,))
