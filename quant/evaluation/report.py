"""What an evaluation found, as `pocketvlm evaluate` writes it: figures by task and metric, each with n and interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from quant.evaluation.replies import Reply
from quant.evaluation.sample import Sample
from quant.evaluation.scorers.table import ALSO, METRICS
from quant.quality.evaluation import ALL_TASKS
from quant.quality.measures import Float64, bootstrap, grouped_bootstrap

_RULE_OF_THREE = 3.0
"""n trials that all end alike leave at most 3 / n to the other end at 95 % (Hanley and Lippman-Hand 1983)."""
_MOST_SHOWN = 20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Frozen):
    """One measure of one task.

    Attributes:
        mean: Over its samples.
        low: Of the 95 % interval of the mean.
        high: Of the same.
        n: Samples.
    """

    mean: float
    low: float
    high: float
    n: int


class Shortfall(_Frozen):
    """A reply that got less than full marks, as a reader sees it.

    Attributes:
        place: The row.
        task: Of the row.
        question: As it was asked, without instruction.
        right: What would have been right.
        reply: What was said.
        mark: What it got.
        refused: Why the model did not take it; "" where it did.
    """

    place: str
    task: str
    question: str
    right: str
    reply: str
    mark: float
    refused: str


class EvaluationReport(_Frozen):
    """All that was found.

    Attributes:
        model: Its name.
        target: The bundle or the endpoint that was asked.
        file: Of the samples.
        file_sha256: Of that file.
        format: Of the samples.
        num_rows: Of the file.
        num_samples: That were used.
        num_refused: That the model did not take; they count as wrong.
        options: What the figures depend on besides.
        seconds: That the run took.
        made_by: PocketVLM's version.
        tasks: Task -> metric -> figure; "all" is over all tasks.
        shortfalls: Some replies that got less than full marks.
    """

    model: str
    target: str
    file: str
    file_sha256: str
    format: str
    num_rows: int
    num_samples: int
    num_refused: int
    options: dict[str, str | int | float | list[str] | None]
    seconds: float
    made_by: str
    tasks: dict[str, dict[str, Figure]]
    shortfalls: tuple[Shortfall, ...] = ()


@dataclass(frozen=True)
class Marks:
    """The marks of replies by one metric.

    Attributes:
        metric: A name, as the report tells it.
        tasks: Of each sample.
        values: [n].
        weights: [n], what each counts in the mean.
        is_share: Values lie between 0 and 1.
    """

    metric: str
    tasks: Sequence[str]
    values: Float64
    weights: Sequence[int]
    is_share: bool = True

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the figure of each task, then that of all."""
        names = np.array(self.tasks)
        yield ALL_TASKS, self._figure(np.ones(len(names), bool))
        if len(set(self.tasks)) > 1:
            for name in dict.fromkeys(self.tasks):
                yield name, self._figure(names == name)

    def _figure(self, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Figure:
        values, weights = self.values[chosen], np.array(self.weights)[chosen]
        if set(weights) == {1}:
            interval = bootstrap(values)
        else:
            interval = grouped_bootstrap([np.full(n, value) for n, value in zip(weights, values, strict=True)])
        low, high, n = interval.low, interval.high, interval.n
        if self.is_share and set(values) <= {0.0, 1.0}:  # resamples of ones are ones, however few
            low, high = min(low, max(1 - _RULE_OF_THREE / n, 0)), max(high, min(_RULE_OF_THREE / n, 1))
        return Figure(mean=interval.mean, low=low, high=high, n=n)


def marks_of(samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Marks]:
    """Return the marks of replies, by each sample's metric and by what is told beside it.

    What was refused is marked as an empty reply, so that no model gains by refusing.
    """
    found = []
    for metric in dict.fromkeys(sample.metric for sample in samples):
        chosen = [place for place, sample in enumerate(samples) if sample.metric == metric]
        own = [samples[place] for place in chosen]
        texts = [replies[place].text for place in chosen]
        for name in (metric, *ALSO.get(metric, ())):
            how = METRICS[name]
            weights = [how.weight(sample) if how.weight else 1 for sample in own]
            values = np.array(how.marks(texts, own))
            found.append(Marks(name, [sample.task for sample in own], values, weights, how.is_share))
    return found


def tasks_of(marks: Sequence[Marks]) -> dict[str, dict[str, Figure]]:
    """Return task -> metric -> figure."""
    tasks: dict[str, dict[str, Figure]] = {}
    for each in marks:
        for task, figure in each.figures():
            tasks.setdefault(task, {})[each.metric] = figure
    return tasks


def shortfalls_of(samples: Sequence[Sample], replies: Sequence[Reply], marks: Sequence[Marks]) -> tuple[Shortfall, ...]:
    """Return the first replies that got less than full marks by the samples' own metric, the refused ones before."""
    own = _own_marks(samples, marks)
    short = [place for place, mark in enumerate(own) if _falls_short(samples[place].metric, mark)]
    short.sort(key=lambda place: not replies[place].refused)
    return tuple(_shortfall(samples[place], replies[place], own[place]) for place in short[:_MOST_SHOWN])


def _own_marks(samples: Sequence[Sample], marks: Sequence[Marks]) -> list[float]:
    queues: Mapping[str, Iterator[float]] = {each.metric: iter(each.values) for each in reversed(marks)}
    return [float(next(queues[sample.metric])) for sample in samples]


def _falls_short(metric: str, mark: float) -> bool:
    if metric == "cer":
        return mark > 0
    return mark < 1 if METRICS[metric].is_share else False


def _shortfall(sample: Sample, reply: Reply, mark: float) -> Shortfall:
    return Shortfall(
        place=str(sample.place),
        task=sample.task,
        question=sample.question,
        right=sample.right,
        reply=reply.text,
        mark=mark,
        refused=reply.refused,
    )
