"""What models of `pictures` are scored on: wordings, sizes, fonts, words, digits and seeds that training never uses."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable

from PIL import Image

from reference import photographs, pictures
from reference.dialogues import follow_up, of_one, unseen, which
from reference.enquiries import ASKERS, Asker, Enquiry, picture_for
from reference.seeds import calibration_seed, held_out_seed

KINDS = (*ASKERS, "which", "photograph")
"""Of questions that the real model is asked."""
SMALL_KINDS = (*KINDS, "of one", "it", "no image")
"""Of questions that a model is asked which was taught to converse here."""
_TEXT_FIRST_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about images.

    Attributes:
        images: Of any size.
        enquiry: What is asked and what is right.
        is_text_first: The text comes before the images.
        before: A question about the images that was asked and answered, or None.
    """

    images: tuple[Image.Image, ...]
    enquiry: Enquiry
    is_text_first: bool = False
    before: Enquiry | None = None

    @property
    def task(self) -> str:
        """Return the kind of question."""
        return self.enquiry.kind

    @property
    def answer(self) -> str:
        """Return the sentence that training teaches for this."""
        return self.enquiry.answer

    def is_right(self, reply: str) -> bool:
        """Say whether a reply says what must be said, and nothing that contradicts it."""
        return self.enquiry.is_right(reply)

    def messages(self) -> list[dict[str, object]]:
        """Return the conversation for a chat template."""
        images: list[dict[str, str]] = [{"type": "image"} for _ in self.images]
        first, *rest = [turn for turn in (self.before, self.enquiry) if turn is not None]
        text = {"type": "text", "text": first.question}
        messages: list[dict[str, object]] = [
            {"role": "user", "content": [text, *images] if self.is_text_first else [*images, text]}
        ]
        for turn in rest:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": first.answer}]})
            messages.append({"role": "user", "content": [{"type": "text", "text": turn.question}]})
        return messages


def held_out(kind: str, n: int, *, is_familiar: bool = False, looks: pictures.Looks | None = None) -> list[Question]:
    """Return n questions of a kind; the same ones for ever.

    Args:
        kind: One of `SMALL_KINDS`.
        n: How many.
        is_familiar: In training's wordings and looks; pictures still come from held-out seeds.
        looks: Of the pictures, in the place of those; None: as `is_familiar` says.

    Raises:
        ValueError: The kind is unknown.
    """
    drawn = looks or (pictures.TRAINING if is_familiar else pictures.HELD_OUT)
    return _questions(kind, n, lambda index: held_out_seed(f"real {kind}", 0, index), drawn, is_familiar=is_familiar)


def calibration(kind: str, n: int) -> list[Question]:
    """Return n questions of a kind as training has them, for quantizers to be calibrated on; never held-out ones.

    Raises:
        ValueError: The kind is unknown.
    """
    return _questions(
        kind, n, lambda index: calibration_seed(f"real {kind}", index), pictures.TRAINING, is_familiar=True
    )


def _questions(
    kind: str, n: int, seed_of: Callable[[int], int], looks: pictures.Looks, *, is_familiar: bool
) -> list[Question]:
    if kind not in SMALL_KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(SMALL_KINDS)}")
    drawn = (_try_question(kind, random.Random(seed_of(index)), looks, is_familiar) for index in itertools.count())
    return list(itertools.islice((question for question in drawn if question is not None), n))


def _try_question(kind: str, rng: random.Random, looks: pictures.Looks, is_familiar: bool) -> Question | None:
    is_text_first = rng.random() < _TEXT_FIRST_SHARE
    if kind == "photograph":
        index = rng.randrange(len(photographs.PHOTOGRAPHS))
        image = photographs.view(index, rng, is_held_out=not is_familiar)
        return Question((image,), photographs.enquiry(index, rng, is_held_out=not is_familiar), is_text_first)
    if kind == "no image":
        return Question((), unseen(rng, is_held_out=not is_familiar))
    if kind == "it":
        picture = picture_for("shape", rng, looks)
        pair = follow_up(picture, rng, is_held_out=not is_familiar)
        return pair and Question((pictures.render(picture),), pair[1], is_text_first, pair[0])
    if kind in ("which", "of one"):
        shown = tuple(picture_for("shape", rng, looks) for _ in range(2))
        enquiry = (which if kind == "which" else of_one)(shown, rng, is_held_out=not is_familiar)
    else:
        shown = (picture_for(kind, rng, looks),)
        enquiry = ASKERS[kind](Asker(shown[0], rng, is_held_out=not is_familiar))
    return None if enquiry is None else Question(tuple(map(pictures.render, shown)), enquiry, is_text_first)
