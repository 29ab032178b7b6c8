"""One row of a file of samples: what is shown, what is asked, and what is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quant.evaluation.pictures import ImageFile, Picture
from quant.evaluation.rows import Place

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Of choices, in their order."""


@dataclass(frozen=True)
class Shown:
    """What goes before a question.

    Attributes:
        images: In their order.
        frames: Of a video, as pictures in their order.
        video: One file.
    """

    images: tuple[Picture, ...] = ()
    frames: tuple[Picture, ...] = ()
    video: ImageFile | None = None


@dataclass(frozen=True)
class Example:
    """A question that was answered, shown before the one that is asked.

    Attributes:
        shown: Before its question.
        question: As it was asked.
        answer: As it was answered.
    """

    shown: Shown
    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One row.

    Attributes:
        place: Of the row.
        format: A name of `quant.evaluation.formats.FORMATS`.
        task: Under which it is reported.
        metric: By which a reply is marked, a name of `quant.evaluation.scorers.table.METRICS`; "" where nothing is.
        shown: Before the question; of `search`, the query's image where it has no text.
        question: Empty where the format has none of its own; of `search`, the query's text.
        answers: Right texts, of which one is enough; letters of `choices` where there are some, all of which are right.
        choices: Texts to choose from.
        examples: Answered before the question.
        relevant: Of `search`: names of documents, and how relevant each is.
        documents: Those that the row names: of `search`, what is relevant; of `document`, itself.
    """

    place: Place
    format: str
    task: str
    metric: str = ""
    shown: Shown = Shown()
    question: str = ""
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    relevant: Mapping[str, float] = field(default_factory=dict)
    documents: tuple[Picture, ...] = ()

    @property
    def right(self) -> str:
        """What a perfect reply says, as it is shown to a reader."""
        if self.choices:
            return ", ".join(f"{letter}. {self.choices[LETTERS.index(letter)]}" for letter in self.answers)
        return " | ".join(dict.fromkeys(self.answers))
