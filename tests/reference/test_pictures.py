"""Pictures: what they say they show is what is drawn, and the held-out looks are never trained on."""

from __future__ import annotations

import importlib.util
import random

import numpy as np
import pytest
from scipy import ndimage

from reference.pictures import (
    COLOURS,
    HELD_OUT,
    TRAINING,
    UNSEEN_GROUNDS,
    Picture,
    letter_middles,
    render,
    sample,
)


@pytest.fixture(scope="module", autouse=True)
def _fonts_and_photographs() -> None:
    """Both come with packages of the [train] extra."""
    for package in ("matplotlib", "skimage", "sklearn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; it comes with the extra train")


def _plain(num_shapes: int, seed: int) -> Picture:
    """Return a picture on plain ground."""
    for number in range(seed, seed + 50_000, 1000):
        picture = sample(random.Random(number), TRAINING, num_shapes=num_shapes)
        if picture.ground == "plain" and min(picture.size_px) >= 96:
            return picture
    raise ValueError(f"no seed near {seed} gives a plain picture")


def _is_drawn(picture: Picture) -> np.ndarray:
    far = np.abs(np.asarray(render(picture)).astype(int) - np.array(picture.ground_tints[0])).max(-1)
    return far > 30


@pytest.mark.parametrize("seed", range(20))
def test_as_many_patches_are_drawn_as_there_are_shapes(seed: int) -> None:
    picture = _plain(1 + seed % 6, seed)
    assert ndimage.label(_is_drawn(picture), np.ones((3, 3)))[1] == len(picture.shapes)


@pytest.mark.parametrize("seed", range(20))
def test_a_shape_is_drawn_where_its_box_is_in_its_tint(seed: int) -> None:
    picture = _plain(1, seed)
    item, drawn = picture.items[0], _is_drawn(picture)
    rows, columns = np.nonzero(drawn)
    width_px, height_px = picture.size_px
    middle = (columns.min() + columns.max() + 1) / 2 / width_px, (rows.min() + rows.max() + 1) / 2 / height_px
    assert middle == pytest.approx(item.centre, abs=0.04)
    inks, counts = np.unique(np.asarray(render(picture))[drawn], axis=0, return_counts=True)
    assert tuple(inks[counts.argmax()]) == item.tint


def test_every_side_is_from_64_to_512_pixels() -> None:
    sides = [side for seed in range(300) for side in sample(random.Random(seed), TRAINING, num_shapes=1).size_px]
    assert (min(sides), max(sides)) == (64, 512)


def test_colours_that_are_written_alike_are_drawn_alike() -> None:
    """A tint is nearer to an anchor of its own colour than to another's."""
    for seed in range(100):
        for item in sample(random.Random(seed), TRAINING, num_shapes=4).items:
            nearest = min(
                (float(np.abs(np.subtract(anchor, item.tint)).sum()), colour)
                for colour, anchors in COLOURS.items()
                for anchor in anchors
            )
            assert nearest[1] == item.colour


def test_held_out_looks_share_nothing_with_training() -> None:
    assert not set(HELD_OUT.sides_px) & set(TRAINING.sides_px)
    assert not set(HELD_OUT.fonts) & set(TRAINING.fonts)
    assert not set(HELD_OUT.words) & set(TRAINING.words)
    assert HELD_OUT.digit_split != TRAINING.digit_split


def test_letters_stand_from_left_to_right_inside_their_word() -> None:
    picture = sample(random.Random(3), HELD_OUT, words=("MUSEUM",))
    item = picture.items[0]
    middles = letter_middles(item)
    assert len(middles) == 6
    assert middles == sorted(middles)
    assert item.box[0] < middles[0]
    assert middles[-1] < item.box[2]


def test_unseen_grounds_are_none_of_trainings_and_are_drawn() -> None:
    drawn = {}
    for seed in range(60):
        picture = sample(random.Random(seed), UNSEEN_GROUNDS)
        if picture.ground != "plain":
            drawn[picture.ground] = np.unique(np.asarray(render(picture)).reshape(-1, 3), axis=0)
    assert set(drawn) == set(UNSEEN_GROUNDS.grounds)
    assert not set(drawn) & {*TRAINING.grounds, *HELD_OUT.grounds}
    assert all(len(tints) == 2 for tints in drawn.values())
