"""Repeats one piece of work until its time is known, as a distribution."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from loadtests.distribution import Distribution
from runtime.turns import Turns, milliseconds_of


@dataclass(frozen=True)
class RequestEnergy:
    """What one request took, beside whatever else the metered part did meanwhile, idling included.

    Attributes:
        joules: Of one request.
        tokens: That it was answered with; 0 of requests that make none.
    """

    joules: float
    tokens: float = 0.0

    @property
    def tokens_per_joule(self) -> float | None:
        """Tokens made with one joule; None of requests that make none."""
        return self.tokens / self.joules if self.tokens and self.joules else None


@dataclass(frozen=True)
class Measurement:
    """One line of a benchmark.

    Attributes:
        name: What was run.
        milliseconds: Of one run.
        items: How many `unit`s one run handles.
        unit: e.g. "tokens"; empty where a rate says nothing.
        energy: Of one request; None where no meter told it, or no request is what was run.
    """

    name: str
    milliseconds: Distribution
    items: int = 1
    unit: str = ""
    energy: RequestEnergy | None = None

    @property
    def per_second(self) -> float | None:
        """Items per second at the median time."""
        return self.items / (self.milliseconds.p50 / 1e3) if self.unit else None


@dataclass(frozen=True)
class Stopwatch(Turns):
    """Turns with the defaults of a benchmark, and what one work alone takes."""

    warmup: int = 10
    repeats: int = 30
    budget_s: float = 15.0

    def time(self, work: Callable[[], object]) -> Distribution:
        """Return the milliseconds that `work` takes."""
        return self.collect(lambda: milliseconds_of(work))

    def collect(self, work: Callable[[], float]) -> Distribution:
        """Return the distribution of the milliseconds that `work` itself returns."""
        return distribution_of(self.run({"": work})[""])

    async def collect_async(self, work: Callable[[], Awaitable[float]]) -> Distribution:
        """Return the distribution of the milliseconds that `work`, awaited, returns."""
        times_ms = [(counts, await work()) for counts in self.rounds()]
        return distribution_of([value for counts, value in times_ms if counts])


def distribution_of(times_ms: Sequence[float]) -> Distribution:
    """Return the distribution of at least one time."""
    distribution = Distribution.of(times_ms)
    if distribution is None:
        raise ValueError("nothing was run")
    return distribution
