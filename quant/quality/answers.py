"""How a vision-language variant answers beside its parent: freely, with right answers fed, and about other images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from bundle.prompt import Turn
from bundle.report import ImageSensitivity, Replies, TaskAccuracy, TeacherForced
from bundle.tensors import IMAGE_FEATURES
from quant.quality.evaluation import ALL_TASKS, Flags, Measured, PairedFlags, Progress, Question, turns_of
from quant.quality.measures import (
    Float64,
    Likeness,
    clear_choices,
    first_difference,
    grouped_bootstrap,
    kl_divergences,
    likenesses_of,
    negative_log_likelihoods,
    top1_agreements,
)
from runtime.decoder import Logits
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import Prefilled, SeenImages

MOST_EXTRA_TOKENS = 8
"""A reply may run this much longer than the right one before it is cut: it is wrong by then."""
_MOST_SWAPS = 64
"""Questions asked once more about another's images, spread evenly over all."""
_MOST_UNJUDGED = 24
"""Questions answered freely where no reply is right or wrong, spread evenly over all: enough to see where two part."""


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
    parent: AnsweringModel,
    variant: AnsweringModel,
    questions: Sequence[Question],
    progress: Progress,
    *,
    has_accuracy: bool = True,
) -> Measured:
    """Return how a variant answers questions beside its parent.

    Args:
        parent: The reference.
        variant: Held against it.
        questions: At least one.
        progress: Called with a line now and then.
        has_accuracy: Whether a reply can be right; else no accuracy is counted, and few questions are answered freely.

    Raises:
        ContextLengthError: A question does not fit the model's context.
    """
    every = _Every(
        swap=max(len(questions) // _MOST_SWAPS, 1), reply=1 if has_accuracy else -(-len(questions) // _MOST_UNJUDGED)
    )
    comparison = _Comparison(parent, variant, every, has_accuracy)
    for at, question in enumerate(questions):
        if at % 50 == 0:
            progress(f"evaluating question {at + 1} of {len(questions)}")
        comparison.add(at, question)
    return comparison.measured()


@dataclass(frozen=True)
class Answered:
    """One model's answer to one question.

    Attributes:
        logits: [A, V], of the right answer's tokens.
        reply: Its own answer's tokens; None where it was not asked for one.
    """

    logits: Logits
    reply: list[int] | None


@dataclass(frozen=True)
class _View:
    """One model's view of one question.

    Attributes:
        seen: Its images.
        answer: About them.
    """

    seen: SeenImages
    answer: Answered


@dataclass(frozen=True)
class _Every:
    """One question in how many is treated so.

    Attributes:
        swap: Asked again about the images of one before it.
        reply: Answered freely.
    """

    swap: int
    reply: int


class AnswerFigures:
    """Answers beside those of a reference, to the same questions; keeps figures per token or question, never logits.

    Args:
        text_of: A reply as a reader sees it.
        has_accuracy: Whether replies are judged.
    """

    def __init__(self, text_of: Callable[[Sequence[int]], str], *, has_accuracy: bool) -> None:
        self._text_of, self._has_accuracy = text_of, has_accuracy
        self._tasks: list[str] = []
        self._right: list[list[bool]] = []
        self._divergences: list[Float64] = []
        self._agreements: list[Float64] = []
        self._clear_agreements: list[Float64] = []
        self._nlls: list[Float64] = []
        self._nll_rises: list[Float64] = []
        self._first_differences: list[int | None] = []

    def add(self, question: Question, ids: Sequence[int], expected: Answered, found: Answered) -> None:
        """Take in how the reference and the other answered a question.

        Args:
            question: Of both.
            ids: Of the right answer.
            expected: The reference's answer.
            found: The other's.
        """
        self._divergences.append(kl_divergences(expected.logits, found.logits))
        self._agreements.append(top1_agreements(expected.logits, found.logits))
        self._clear_agreements.append(self._agreements[-1][clear_choices(expected.logits)])
        self._nlls.append(negative_log_likelihoods(expected.logits, ids))
        self._nll_rises.append(negative_log_likelihoods(found.logits, ids) - self._nlls[-1])
        if expected.reply is not None and found.reply is not None:
            self._add_replies(question, expected.reply, found.reply)

    def _add_replies(self, question: Question, expected: list[int], found: list[int]) -> None:
        self._first_differences.append(first_difference(expected, found))
        if self._has_accuracy:
            self._tasks.append(question.task)
            self._right.append([question.is_right(self._text_of(reply)) for reply in (expected, found)])

    def measured(self) -> Measured:
        """Return all figures."""
        accuracy = _by_task(self._tasks, np.array(self._right)) if self._right else {}
        return Measured(accuracy, self._teacher_forced(), self._replies() if self._first_differences else None)

    def _teacher_forced(self) -> TeacherForced:
        kl = np.concatenate(self._divergences)
        kl_mean, top1 = grouped_bootstrap(self._divergences), grouped_bootstrap(self._agreements)
        clear = [each for each in self._clear_agreements if each.size]
        of_clear = grouped_bootstrap(clear) if clear else None
        has_interval = len(self._divergences) > 1
        return TeacherForced(
            num_samples=len(self._divergences),
            num_tokens=kl.size,
            kl_mean=kl_mean.mean,
            kl_interval=(kl_mean.low, kl_mean.high) if has_interval else None,
            kl_p99=float(np.percentile(kl, 99)),
            top1_agreement=top1.mean,
            top1_interval=(top1.low, top1.high) if has_interval else None,
            num_clear_tokens=sum(each.size for each in clear),
            clear_agreement=of_clear.mean if of_clear else None,
            clear_interval=(of_clear.low, of_clear.high) if of_clear and len(clear) > 1 else None,
            delta_nll=float(np.concatenate(self._nll_rises).mean()),
            parent_nll=float(np.concatenate(self._nlls).mean()),
        )

    def _replies(self) -> Replies:
        different = [at for at in self._first_differences if at is not None]
        n = len(self._first_differences)
        first = float(np.mean(different)) if different else None
        return Replies(n=n, identical=1 - len(different) / n, first_divergence=first)


class _Comparison:
    """Two models side by side over questions.

    Args:
        parent: The reference.
        variant: Held against it.
        every: What is done with one question in how many.
        has_accuracy: Whether replies are judged.
    """

    def __init__(self, parent: AnsweringModel, variant: AnsweringModel, every: _Every, has_accuracy: bool) -> None:
        self._parent, self._variant, self._every = parent, variant, every
        self._answers = AnswerFigures(parent.text_of, has_accuracy=has_accuracy)
        self._features = Likeness()
        self._others: tuple[SeenImages, SeenImages] | None = None
        self._swaps: list[tuple[float, float]] = []

    def add(self, at: int, question: Question) -> None:
        """Ask both models question number `at`."""
        turns, ids, replies = turns_of(question), self._parent.answer_ids(question.answer), at % self._every.reply == 0
        expected, found = (_answer(model, question, turns, ids, replies) for model in (self._parent, self._variant))
        self._answers.add(question, ids, expected.answer, found.answer)
        for features in zip(expected.seen.whole, found.seen.whole, strict=True):
            self._features.add(*features)
        if at % self._every.swap == 0 and self._others and _shows_another(expected.seen, self._others[0]):
            pairs = ((self._parent, expected, self._others[0]), (self._variant, found, self._others[1]))
            parent, variant = (_sensitivity(model, turns, ids, own.answer.logits, other) for model, own, other in pairs)
            self._swaps.append((parent, variant))
        if expected.seen.layouts:
            self._others = expected.seen, found.seen

    def measured(self) -> Measured:
        """Return all figures."""
        return replace(
            self._answers.measured(),
            image_sensitivity=self._image_sensitivity(),
            likenesses=likenesses_of({IMAGE_FEATURES: self._features}),
        )

    def _image_sensitivity(self) -> ImageSensitivity | None:
        if not self._swaps:
            return None
        parent, variant = np.mean(self._swaps, axis=0)
        ratio = float(variant / parent) if parent > 0 else None
        return ImageSensitivity(n=len(self._swaps), fp32=float(parent), quantized=float(variant), ratio=ratio)


def _answer(
    model: AnsweringModel, question: Question, turns: Sequence[Turn], ids: Sequence[int], replies: bool
) -> _View:
    seen = model.see(question.images)
    room = len(ids) + MOST_EXTRA_TOKENS
    prompt = model.prefill(model.prompt_about(turns, seen), room)
    reply = model.reply_ids(prompt, room) if replies else None
    return _View(seen, Answered(model.forced_logits(prompt, ids), reply))


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
