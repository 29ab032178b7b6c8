"""Means, intervals and comparisons with the baseline of what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quant.quality.measures import Float64, Interval, bootstrap, grouped_bootstrap
from quant.shortening.record import Answers, Record
from quant.shortening.ways import BASELINES, Stage, Way

UNIFORM = BASELINES[0]


@dataclass(frozen=True)
class Figure:
    """One way's figures over some questions.

    Attributes:
        way: Which.
        value: Right answers, in %; where none can be right, the KL divergence in nats.
        loss: What it is worse by than the whole prompt on the same questions, in the same unit.
        behind: What it is worse by than the uniform choice at its share; None of that itself, and where it was not
            measured.
        top1: Share of answer tokens with the whole prompt's likeliest choice.
    """

    way: Way
    value: Interval
    loss: Interval
    behind: Interval | None
    top1: Interval

    @property
    def verdict(self) -> str:
        """Return "better", "worse" or "" beside the uniform choice: beyond the 95 % interval, or not."""
        if self.behind is None or self.behind.low <= 0 <= self.behind.high:
            return ""
        return "worse" if self.behind.mean > 0 else "better"


def figures_of(record: Record, stage: Stage, task: str | None = None) -> Iterator[Figure]:
    """Yield the figures of every way of a stage.

    Args:
        record: What was measured.
        stage: Where something is left out.
        task: Of the questions; None: all.
    """
    for answers in record.ways:
        if answers.way is not None and answers.way.stage == stage:
            figure = _figure(record, answers, answers.way, task)
            if figure is not None:
                yield figure


def _figure(record: Record, answers: Answers, way: Way, task: str | None) -> Figure | None:
    places = [at for at, question in enumerate(answers.questions) if task in (None, record.tasks[question])]
    if not places:
        return None
    asked = [answers.questions[at] for at in places]
    worth = _badness(record, answers, asked)
    whole = _badness(record, record.whole, asked)
    tokens = [np.full(answers.num_tokens[at], answers.top1[at]) for at in places]
    baseline = record.of(Way("before" if way.stage == "inside" else way.stage, UNIFORM, way.share))
    behind = None
    if baseline is not None and baseline is not answers:
        behind = _mean(record, answers, places, worth - _badness(record, baseline, asked))
    value = _mean(record, answers, places, -worth if record.has_accuracy else worth)
    return Figure(way, value, _mean(record, answers, places, worth - whole), behind, grouped_bootstrap(tokens))


def _badness(record: Record, answers: Answers, asked: list[int]) -> Float64:
    """Return what is bad in each answer: minus 100 for a right one, or its divergence."""
    place = {question: at for at, question in enumerate(answers.questions)}
    values = answers.right if record.has_accuracy else answers.kl
    sign = -100.0 if record.has_accuracy else 1.0
    return np.array([sign * float(values[place[question]]) for question in asked])


def _mean(record: Record, answers: Answers, places: list[int], values: Float64) -> Interval:
    """Return the mean over questions where each is right or wrong, over tokens where each diverges."""
    if record.has_accuracy:
        return bootstrap(values)
    return grouped_bootstrap([np.full(answers.num_tokens[at], value) for at, value in zip(places, values, strict=True)])
