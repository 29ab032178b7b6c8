"""Captions of scenes, and the held-out sets that image-text retrieval and zero-shot labels are scored on.

Needs numpy, Pillow and scikit-learn only.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from PIL import Image

from reference.drawing import COLOURS, SHAPES
from reference.layout import Scene, Thing, random_text, render, sample_scene
from reference.seeds import calibration_seed, held_out_seed

SHAPE_LABELS = {shape: f"a {shape}" for shape in SHAPES}
COLOUR_LABELS = {colour: f"a {colour} shape" for colour in COLOURS}


@dataclasses.dataclass(frozen=True)
class CaptionedImage:
    """An image, the caption that is true of it, and for zero-shot sets its label."""

    image: Image.Image
    caption: str
    label: str = ""


def phrase(thing: Thing) -> str:
    """Return one thing in words, such as "a large red circle"."""
    if thing.kind == "text":
        return f"the text {thing.name} in {thing.colour}"
    if thing.kind == "digit":
        return f"the digit {thing.name} in {thing.colour}"
    return f"a {thing.size} {thing.colour} {thing.name}"


def describe(scene: Scene) -> str:
    """Return the caption of a scene: its things from left to right."""
    phrases = [phrase(t) for t in sorted(scene.things, key=lambda t: t.centre_px[0])]
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def captioned_scene(rng: random.Random, digit_split: str) -> Scene:
    """Return a scene worth a caption: 1 to 4 shapes, or a text or digit with up to 2 shapes."""
    draw = rng.random()
    if draw < 0.7:
        return sample_scene(rng, rng.randint(1, 4))
    if draw < 0.85:
        return sample_scene(rng, rng.randint(0, 2), texts=(random_text(rng),))
    return sample_scene(rng, rng.randint(0, 2), num_digits=1, digit_split=digit_split)


def held_out(n: int, seed: int = 0) -> list[CaptionedImage]:
    """Return n images with n distinct captions, never met in training: for recall@1.

    Args:
        n: How many.
        seed: Which set; the same seed gives the same images for ever.
    """
    return _distinct(n, lambda index: held_out_seed("caption", seed, index), "test")


def calibration(n: int) -> list[CaptionedImage]:
    """Return n images with n distinct captions as training has them, for quantizers to be calibrated on."""
    return _distinct(n, lambda index: calibration_seed("caption", index), "train")


def _distinct(n: int, seed_of: Callable[[int], int], digit_split: str) -> list[CaptionedImage]:
    found: dict[str, CaptionedImage] = {}
    index = 0
    while len(found) < n:
        scene = captioned_scene(random.Random(seed_of(index)), digit_split)
        index += 1
        caption = describe(scene)
        if caption not in found:
            found[caption] = CaptionedImage(render(scene), caption)
    return list(found.values())


def held_out_labels(kind: str, n: int, seed: int = 0) -> list[CaptionedImage]:
    """Return n images of one shape each, labelled: for zero-shot classification.

    Args:
        kind: "shape" (prompts in `SHAPE_LABELS`) or "colour" (prompts in `COLOUR_LABELS`).
        n: How many.
        seed: Which set.

    Raises:
        ValueError: The kind is neither.
    """
    return _labels(kind, n, lambda index: held_out_seed(f"label {kind}", seed, index))


def calibration_labels(kind: str, n: int) -> list[CaptionedImage]:
    """Return n labelled images of one shape each as training has them, for quantizers to be calibrated on.

    Raises:
        ValueError: The kind is neither "shape" nor "colour".
    """
    return _labels(kind, n, lambda index: calibration_seed(f"label {kind}", index))


def _labels(kind: str, n: int, seed_of: Callable[[int], int]) -> list[CaptionedImage]:
    if kind not in ("shape", "colour"):
        raise ValueError(f"unknown kind {kind!r}; known: shape, colour")
    found = []
    for index in range(n):
        scene = sample_scene(random.Random(seed_of(index)), 1)
        thing = scene.things[0]
        label = thing.name if kind == "shape" else thing.colour
        found.append(CaptionedImage(render(scene), (SHAPE_LABELS if kind == "shape" else COLOUR_LABELS)[label], label))
    return found
