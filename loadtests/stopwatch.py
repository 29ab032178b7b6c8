"""Repeats a piece of work until its time is known: warm-up, then as many runs as are asked for or fit a budget."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from loadtests.distribution import Distribution

MIN_RUNS = 3
"""Runs even of work that overruns its budget."""
_WARMUP_SHARE = 0.25
"""Of the budget; quick work gets all its warm-up runs, slow work at least one."""


@dataclass(frozen=True)
class Measurement:
    """One line of a benchmark.

    Attributes:
        name: What was run.
        milliseconds: Of one run.
        items: How many `unit`s one run handles.
        unit: e.g. "tokens"; empty where a rate says nothing.
    """

    name: str
    milliseconds: Distribution
    items: int = 1
    unit: str = ""

    @property
    def per_second(self) -> float | None:
        """Items per second at the median time."""
        return self.items / (self.milliseconds.p50 / 1e3) if self.unit else None


@dataclass(frozen=True)
class Stopwatch:
    """How often to run what is measured.

    Attributes:
        warmup: Runs before the first that counts.
        repeats: Runs that count, at most.
        budget_s: No new run is begun after so long, once `MIN_RUNS` have counted.
    """

    warmup: int = 10
    repeats: int = 30
    budget_s: float = 15.0

    def rounds(self) -> Iterator[bool]:
        """Yield once per run to make: False while it is warm-up, then True."""
        end_s = time.perf_counter() + self.budget_s * _WARMUP_SHARE
        for done in range(self.warmup):
            if done and time.perf_counter() > end_s:
                break
            yield False
        end_s = time.perf_counter() + self.budget_s
        for done in range(max(self.repeats, MIN_RUNS)):
            if done >= MIN_RUNS and time.perf_counter() > end_s:
                return
            yield True

    def time(self, work: Callable[[], object]) -> Distribution:
        """Return the milliseconds that `work` takes."""
        return self.collect(lambda: milliseconds_of(work))

    def collect(self, work: Callable[[], float]) -> Distribution:
        """Return the distribution of the milliseconds that `work` itself returns."""
        times_ms = [(counts, work()) for counts in self.rounds()]
        return _counted(times_ms)

    async def collect_async(self, work: Callable[[], Awaitable[float]]) -> Distribution:
        """Return the distribution of the milliseconds that `work`, awaited, returns."""
        times_ms = [(counts, await work()) for counts in self.rounds()]
        return _counted(times_ms)


def milliseconds_of(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    started_s = time.perf_counter()
    work()
    return (time.perf_counter() - started_s) * 1e3


def _counted(times_ms: Iterable[tuple[bool, float]]) -> Distribution:
    distribution = Distribution.of([value for counts, value in times_ms if counts])
    if distribution is None:
        raise ValueError("nothing was run")
    return distribution
