"""How a vision-language variant answers beside its parent: freely, with right answers fed, and about other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from bundle.errors import QuantizationError
from bundle.prompt import Turn
from bundle.report import ImageSensitivity, Replies, TaskAccuracy, TeacherForced
from quant.quality.evaluation import ALL_TASKS, Flags, Measured, PairedFlags, Progress, Question, turns_of
from quant.quality.measures import (
    Float64,
    Likeness,
    first_difference,
    kl_divergences,
    likenesses_of,
    negative_log_likelihoods,
    top1_agreements,
)
from runtime.decoder import Logits
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import Prefilled, SeenImages

_MOST_EXTRA_TOKENS = 8
"""A reply may run this much longer than the right one before it is cut: it is wrong by then."""
_MOST_SWAPS = 64
"""Questions asked once more about another's images, spread evenly over all."""


class AnsweringModel(Protocol):
    """What is asked of a model; `runtime.one_request.VisionLanguageRunner` does it."""

    def see(self, images: Sequence[Image.Image]) -> SeenImages:
        """Return what the vision encoder makes of images."""

    def prompt_about(self, turns: Sequence[Turn], seen: SeenImages) -> FilledPrompt:
        """Return the prompt of a conversation about images that were seen."""

    def prefill(self, prompt: FilledPrompt, room_tokens: int) -> Prefilled:
        """Return the state after a prompt, valid until the next one is run."""

    def answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer and of the token that ends it."""

    def forced_logits(self, prompt: Prefilled, answer_ids: Sequence[int]) -> Logits:
        """Return the logits from which each token of a given answer would be chosen."""

    def reply_ids(self, prompt: Prefilled, max_tokens: int) -> list[int]:
        """Return the greedy reply."""

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return a reply as a reader sees it."""


def measure_answers(
    parent: AnsweringModel, variant: AnsweringModel, questions: Sequence[Question], progress: Progress
) -> Measured:
    """Return how a variant answers questions beside its parent.

    Raises:
        QuantizationError: There are no questions.
        ContextLengthError: One does not fit the model's context.
    """
    if not questions:
        raise QuantizationError("the evaluation holds no questions, which a vision-language model is measured on")
    comparison = _Comparison(parent, variant, swap_every=max(len(questions) // _MOST_SWAPS, 1))
    for at, question in enumerate(questions):
        if at % 50 == 0:
            progress(f"evaluating question {at + 1} of {len(questions)}")
        comparison.add(at, question)
    return comparison.measured()


@dataclass(frozen=True)
class _Answered:
    """One model's view of one question.

    Attributes:
        seen: Its images.
        logits: [A, V], of the right answer's tokens.
        reply: Its own answer's tokens.
        is_right: Whether that answer counts.
    """

    seen: SeenImages
    logits: Logits
    reply: list[int]
    is_right: bool


class _Comparison:
    """Two models side by side over questions; keeps figures per token or question, never logits.

    Args:
        parent: The reference.
        variant: Held against it.
        swap_every: One in so many questions is asked again about the images of one before it.
    """

    def __init__(self, parent: AnsweringModel, variant: AnsweringModel, swap_every: int) -> None:
        self._parent, self._variant, self._swap_every = parent, variant, swap_every
        self._tasks: list[str] = []
        self._right: list[tuple[bool, bool]] = []
        self._divergences: list[Float64] = []
        self._agreements: list[Float64] = []
        self._nll_rises: list[Float64] = []
        self._first_differences: list[int | None] = []
        self._features = Likeness()
        self._others: tuple[SeenImages, SeenImages] | None = None
        self._swaps: list[tuple[float, float]] = []

    def add(self, at: int, question: Question) -> None:
        """Ask both models question number `at`."""
        turns, ids = turns_of(question), self._parent.answer_ids(question.answer)
        expected, found = (_answer(model, question, turns, ids) for model in (self._parent, self._variant))
        self._tasks.append(question.task)
        self._right.append((expected.is_right, found.is_right))
        self._divergences.append(kl_divergences(expected.logits, found.logits))
        self._agreements.append(top1_agreements(expected.logits, found.logits))
        rise = negative_log_likelihoods(found.logits, ids) - negative_log_likelihoods(expected.logits, ids)
        self._nll_rises.append(rise)
        self._first_differences.append(first_difference(expected.reply, found.reply))
        for features in zip(expected.seen.whole, found.seen.whole, strict=True):
            self._features.add(*features)
        if at % self._swap_every == 0 and self._others and _shows_another(expected.seen, self._others[0]):
            pairs = ((self._parent, expected, self._others[0]), (self._variant, found, self._others[1]))
            parent, variant = (_sensitivity(model, turns, ids, own.logits, other) for model, own, other in pairs)
            self._swaps.append((parent, variant))
        if expected.seen.layouts:
            self._others = expected.seen, found.seen

    def measured(self) -> Measured:
        """Return all figures."""
        return Measured(
            _by_task(self._tasks, np.array(self._right)),
            self._teacher_forced(),
            self._replies(),
            self._image_sensitivity(),
            {"image_features": likenesses_of(self._features)},
        )

    def _teacher_forced(self) -> TeacherForced:
        kl = np.concatenate(self._divergences)
        return TeacherForced(
            num_samples=len(self._tasks),
            num_tokens=kl.size,
            kl_mean=float(kl.mean()),
            kl_p99=float(np.percentile(kl, 99)),
            top1_agreement=float(np.concatenate(self._agreements).mean()),
            delta_nll=float(np.concatenate(self._nll_rises).mean()),
        )

    def _replies(self) -> Replies:
        different = [at for at in self._first_differences if at is not None]
        n = len(self._first_differences)
        first = float(np.mean(different)) if different else None
        return Replies(n=n, identical=1 - len(different) / n, first_divergence=first)

    def _image_sensitivity(self) -> ImageSensitivity:
        parent, variant = np.mean(self._swaps, axis=0) if self._swaps else (0.0, 0.0)
        ratio = float(variant / parent) if parent > 0 else float("nan")
        return ImageSensitivity(n=len(self._swaps), fp32=float(parent), quantized=float(variant), ratio=ratio)


def _answer(model: AnsweringModel, question: Question, turns: Sequence[Turn], ids: Sequence[int]) -> _Answered:
    seen = model.see(question.images)
    room = len(ids) + _MOST_EXTRA_TOKENS
    prompt = model.prefill(model.prompt_about(turns, seen), room)
    reply = model.reply_ids(prompt, room)
    return _Answered(seen, model.forced_logits(prompt, ids), reply, question.is_right(model.text_of(reply)))


def _shows_another(seen: SeenImages, other: SeenImages) -> bool:
    """Say whether the other question's images can stand in for a question's own, and are not the same."""
    fits = len(seen.layouts) == len(other.layouts) > 0
    return fits and not all(map(np.array_equal, seen.features, other.features))


def _sensitivity(
    model: AnsweringModel, turns: Sequence[Turn], ids: Sequence[int], logits: Logits, other: SeenImages
) -> float:
    """Return the mean KL between a model's distributions about its own images and about the other ones."""
    prompt = model.prefill(model.prompt_about(turns, other), len(ids))
    return float(kl_divergences(logits, model.forced_logits(prompt, ids)).mean())


def _by_task(tasks: Sequence[str], right: Flags) -> dict[str, TaskAccuracy]:
    """Return the accuracy per task from [n, 2] flags of parent and variant."""
    names = np.array(tasks)
    groups = {name: right[names == name] for name in dict.fromkeys(tasks)}
    return {name: PairedFlags(rows[:, 0], rows[:, 1]).summary() for name, rows in {**groups, ALL_TASKS: right}.items()}
