"""Runs pieces of work in turns and keeps what each run told: warm-up, then as many rounds as are asked for or fit.

Machines are shared and noisy. Two things are compared in one run, in turns (A B A B), by what happened within each
round: what else the machine does meets all alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

MIN_ROUNDS = 3
"""Rounds even of work that overruns its budget."""
_WARMUP_SHARE = 0.25
"""Of the budget; quick work gets all its warm-up rounds, slow work at least one."""
_QUARTILES = (25, 50, 75)

Key = TypeVar("Key", bound=Hashable)
Told = TypeVar("Told")


@dataclass(frozen=True)
class Turns:
    """How often to run what is measured.

    Attributes:
        warmup: Rounds before the first that counts.
        repeats: Rounds that count, at most.
        budget_s: No new round is begun after so long, once `MIN_ROUNDS` have counted.
    """

    warmup: int
    repeats: int
    budget_s: float = math.inf

    def rounds(self) -> Iterator[bool]:
        """Yield once per round to make: False while it is warm-up, then True."""
        end_s = time.perf_counter() + self.budget_s * _WARMUP_SHARE
        for done in range(self.warmup):
            if done and time.perf_counter() > end_s:
                break
            yield False
        end_s = time.perf_counter() + self.budget_s
        for done in range(max(self.repeats, MIN_ROUNDS)):
            if done >= MIN_ROUNDS and time.perf_counter() > end_s:
                return
            yield True

    def run(self, works: Mapping[Key, Callable[[], Told]]) -> dict[Key, list[Told]]:
        """Run every work once a round, in the order given; return what each told in the rounds that count."""
        told: dict[Key, list[Told]] = {key: [] for key in works}
        for counts in self.rounds():
            for key, work in works.items():
                found = work()
                if counts:
                    told[key].append(found)
        return told


@dataclass(frozen=True)
class Quartiles:
    """The middle half of what was measured: what neighbours on the machine stretch lies outside of it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Return the quartiles of at least one value."""
        return cls(*np.percentile(values, _QUARTILES).tolist())

    @classmethod
    def of_ratios(cls, values: Sequence[float], to: Sequence[float]) -> Quartiles:
        """Return the quartiles of the ratios within each round of two works that took turns."""
        return cls.of(np.divide(values, to).tolist())

    def __str__(self) -> str:
        """Return e.g. "1.43 (1.38-1.51)"."""
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def milliseconds_of(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    started_s = time.perf_counter()
    work()
    return (time.perf_counter() - started_s) * 1e3


def thread_milliseconds_of(work: Callable[[], object]) -> float:
    """Return how much of a processor's time this thread takes for one call.

    What the machine does while the thread waits for a core does not count; nor does what other threads do for the call.
    """
    started_s = time.thread_time()
    work()
    return (time.thread_time() - started_s) * 1e3
