"""Questions about pictures: their answers are right, others are not, and held-out wordings are never trained on."""

from __future__ import annotations

import dataclasses
import importlib.util
import random

import pytest

from reference import wordings
from reference.enquiries import ASKERS, Asker, Enquiry, picture_for
from reference.photographs import PHOTOGRAPHS, enquiry, opened, view
from reference.pictures import HELD_OUT, TRAINING, Item, Picture


@pytest.fixture(scope="module", autouse=True)
def _fonts_and_photographs() -> None:
    """Both come with packages of the [train] extra."""
    for package in ("matplotlib", "skimage", "sklearn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; it comes with the extra train")


def _asked(kind: str, seed: int, *, is_held_out: bool = False) -> Enquiry | None:
    rng = random.Random(seed)
    picture = picture_for(kind, rng, HELD_OUT if is_held_out else TRAINING)
    return ASKERS[kind](Asker(picture, rng, is_held_out=is_held_out))


def _picture(*items: tuple[str, str, float, float]) -> Picture:
    """Return shapes given as (colour, name, x, y) of their middles."""
    made = tuple(
        Item("shape", name, colour, (0, 0, 0), "small", (x - 0.05, y - 0.05, x + 0.05, y + 0.05))
        for colour, name, x, y in items
    )
    return Picture((128, 128), made, "plain", ((255, 255, 255), (255, 255, 255)), "train")


@pytest.mark.parametrize("is_held_out", [False, True])
@pytest.mark.parametrize("kind", ASKERS)
def test_the_answer_that_is_learnt_counts_as_right(kind: str, is_held_out: bool) -> None:
    found = [e for e in (_asked(kind, seed, is_held_out=is_held_out) for seed in range(60)) if e]
    assert len(found) >= 10
    assert all(e.is_right(e.answer) for e in found)


@pytest.mark.parametrize("kind", ["colour", "shape", "count", "exist", "relation", "where"])
def test_an_answer_that_says_another_thing_counts_as_wrong(kind: str) -> None:
    found = [e for e in (_asked(kind, seed) for seed in range(60)) if e]
    for e in found:
        other = next(o for o in e.others if o not in " ".join(e.keys).split())
        assert not e.is_right(other)
        assert not e.is_right(f"{e.answer} Or {other}.")


def test_two_equal_squares_count_as_two() -> None:
    asker = Asker(_picture(("red", "square", 0.2, 0.2), ("red", "square", 0.8, 0.8)), random.Random(0), False)
    answers = {asker.count().answer for _ in range(40)}  # type: ignore[union-attr]
    assert {"There are two shapes.", "There are two red shapes.", "There are two squares."} <= answers
    assert asker.describe().answer == "The picture shows two red squares."


def test_sides_are_told_from_the_asked_shape() -> None:
    asker = Asker(_picture(("red", "circle", 0.2, 0.5), ("blue", "star", 0.8, 0.5)), random.Random(0), False)
    found = [e for e in (asker.relation() for _ in range(40)) if e]
    assert {e.keys[0]: e.answer.split(" is ")[0].split()[-1] for e in found} == {"left": "circle", "right": "star"}


def test_a_shape_is_where_it_stands() -> None:
    for place, x, y in (("top left", 0.2, 0.2), ("bottom", 0.5, 0.8), ("right", 0.8, 0.5), ("middle", 0.5, 0.5)):
        asker = Asker(_picture(("red", "circle", x, y)), random.Random(0), False)
        assert asker.where().keys == (place,)  # type: ignore[union-attr]


def test_held_out_wordings_are_never_trained_on() -> None:
    assert wordings.TRAINING.keys() == wordings.HELD_OUT.keys()
    for kind, patterns in wordings.TRAINING.items():
        trained = {sentence.lower().rstrip("?.!") for p in patterns for sentence in wordings.expand(p)}
        kept = {sentence.lower().rstrip("?.!") for p in wordings.HELD_OUT[kind] for sentence in wordings.expand(p)}
        assert not trained & kept


def test_a_pattern_expands_to_every_sentence() -> None:
    assert set(wordings.expand("(What|Which) is (it|the (red|blue) one)?")) == {
        f"{first} is {rest}?" for first in ("What", "Which") for rest in ("it", "the red one", "the blue one")
    }


@pytest.mark.parametrize("index", range(len(PHOTOGRAPHS)))
def test_each_photograph_can_be_shown_and_its_answers_count_as_right(index: int) -> None:
    assert max(opened(PHOTOGRAPHS[index].file).size) <= 512
    rng = random.Random(index)
    assert min(view(index, rng, is_held_out=True).size) >= 64
    assert all(e.is_right(e.answer) for e in (enquiry(index, rng, is_held_out=False) for _ in range(20)))


def test_words_are_whole_and_in_order() -> None:
    e = Enquiry("describe", "?", "", ("red star", "blue ring"))
    assert e.is_right("It shows a red star and a blue ring.")
    assert not e.is_right("It shows a blue ring and a red star.")
    assert not e.is_right("It shows a red starfish and a blue ring.")
    assert dataclasses.replace(e, keys=("no",)).is_right("No, it is not.")
    assert not dataclasses.replace(e, keys=("no",)).is_right("nothing")
