"""What is said to a model: samples as conversations, and whoever answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from bundle.manifest import InputType
from quant.evaluation.formats import SEARCHED
from quant.evaluation.sample import LETTERS, Sample, Shown

Vectors = NDArray[np.float32]
Scores = NDArray[np.float64]

_OWN_QUESTIONS = {
    "ocr": "What is written in the image? Answer with the text alone.",
    "caption": "Describe the image in one short sentence.",
    "label": "What does the image show?",
}
"""Of formats whose rows may have none."""
_INSTRUCTIONS = {
    "choice": "Answer with the letter of the right choice alone.",
    "label": "Answer with one of these alone: {labels}.",
}
"""Behind the question, where the caller says nothing else."""


@dataclass(frozen=True)
class Clip:
    """A video: one file, or pictures in order.

    Attributes:
        files: Their bytes.
        is_list: They are pictures.
    """

    files: tuple[bytes, ...]
    is_list: bool


Part = str | bytes | Clip
"""A text, an encoded image, or a video."""


@dataclass(frozen=True)
class Said:
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]


class RefusedError(Exception):
    """A model did not take one question, and will take others: too long, an image that it cannot read."""


class Respondent(Protocol):
    """A model that is asked: a bundle in this process, or an endpoint."""

    @property
    def name(self) -> str:
        """Return the model's name."""

    @property
    def identity(self) -> str:
        """Return what tells this model from every other, as far as can be known."""

    @property
    def embeds(self) -> bool:
        """Return whether it makes vectors."""

    @property
    def answers(self) -> bool:
        """Return whether it makes answers; there are models that do both."""

    @property
    def ranks(self) -> bool:
        """Return whether it tells how near inputs are: whatever embeds does, and what reads two together."""

    @property
    def template(self) -> str:
        """Return the text that a label stands in, "{}" for the label; of a model that embeds."""

    async def answer(self, conversation: Sequence[Said], max_tokens: int) -> str:
        """Return the greedy answer.

        Raises:
            RefusedError: The model does not take this one.
        """

    async def embed(self, inputs: Sequence[str | bytes], kind: InputType | None = None) -> Vectors:
        """Return [n, E] float32, one row of unit length for each text and encoded image.

        Args:
            inputs: Texts and images.
            kind: What they are to those that they are compared with.

        Raises:
            RefusedError: The model does not take one of them.
            SettingsError: It keeps a vector for every token.
        """

    async def scores(self, query: str | bytes, documents: Sequence[str | bytes]) -> Scores:
        """Return [n] how near each document is to the query, for a model that ranks.

        Raises:
            RefusedError: The model does not take one of them.
        """


def many_vectors(name: str) -> str:
    """Return what to say of a model that keeps a vector for every token, where one for an input is wanted."""
    return (
        f"{name} keeps a vector for every token, and one for each input is wanted here; it ranks what another model "
        "finds (--rerank, /v1/rerank)"
    )


def conversation_of(sample: Sample, labels: Sequence[str] = (), instruction: str | None = None) -> list[Said]:
    """Return what a sample asks: its examples, each with its answer, then its images and its question.

    Args:
        sample: Of a format that can be asked.
        labels: Of a file of labels, all of them.
        instruction: Said behind every question; None: the format's own.

    Raises:
        QuantizationError: A file cannot be read.
    """
    said: list[Said] = []
    for example in sample.examples:
        said.append(Said("user", (*_parts(example.shown), example.question)))
        said.append(Said("assistant", (example.answer,)))
    return [*said, Said("user", (*_parts(sample.shown), question_of(sample, labels, instruction)))]


def question_of(sample: Sample, labels: Sequence[str] = (), instruction: str | None = None) -> str:
    """Return the text of a sample's question: with its choices, and with what is said of how to answer."""
    question = sample.question or _OWN_QUESTIONS[sample.format]
    choices = [f"{letter}. {text}" for letter, text in zip(LETTERS, sample.choices, strict=False)]
    behind = _INSTRUCTIONS.get(sample.format, "") if instruction is None else instruction
    return "\n".join(filter(None, (question, *choices, behind.replace("{labels}", ", ".join(labels)))))


def require_askable(samples: Sequence[Sample]) -> None:
    """Check that a model which answers can be asked samples.

    Raises:
        QuantizationError: They are made for a model that embeds.
    """
    if samples[0].format in SEARCHED:
        raise QuantizationError(
            f"{samples[0].place} is of the format {samples[0].format}, which wants a model that embeds; "
            "this one answers"
        )


def _parts(shown: Shown) -> list[Part]:
    parts: list[Part] = [image.data() for image in shown.images]
    if shown.frames:
        parts.append(Clip(tuple(frame.data() for frame in shown.frames), is_list=True))
    if shown.video:
        parts.append(Clip((shown.video.data(),), is_list=False))
    return parts
