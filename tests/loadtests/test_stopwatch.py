"""The distribution of one work's runs, and a rate of it. When it is enough: tests/runtime/test_turns.py."""

from __future__ import annotations

import asyncio

import pytest

from loadtests.distribution import Distribution
from loadtests.stopwatch import Measurement, Stopwatch
from runtime import turns
from runtime.turns import MIN_ROUNDS, milliseconds_of


def test_warm_up_runs_do_not_count() -> None:
    values = iter([1000.0, 1000.0, 1.0, 2.0, 3.0, 4.0])
    found = Stopwatch(warmup=2, repeats=4).collect(lambda: next(values))
    assert (found.n, found.max) == (4, 4.0)


def test_awaited_work_is_counted_the_same() -> None:
    values = iter([1000.0, 1.0, 2.0, 3.0])

    async def work() -> float:
        return next(values)

    found = asyncio.run(Stopwatch(warmup=1, repeats=3).collect_async(work))
    assert (found.n, found.max) == (3, 3.0)


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def work(self) -> None:
        self.now_s += 0.02


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(turns, "time", found)
    return found


def test_slow_work_is_warmed_once_and_repeated_the_least_often(clock: Clock) -> None:
    found = Stopwatch(warmup=10, repeats=50, budget_s=0.01).time(clock.work)
    assert found.n == MIN_ROUNDS
    assert clock.now_s == pytest.approx(0.02 * (MIN_ROUNDS + 1))
    assert found.p50 == pytest.approx(20)


def test_a_quarter_of_the_budget_goes_to_warm_up_and_no_run_begins_after_it(clock: Clock) -> None:
    found = Stopwatch(warmup=10, repeats=50, budget_s=0.19).time(clock.work)
    # Warm-up runs begin at 0, 20 and 40 ms of 47.5; those that count at 0, 20, ..., 180 ms of 190.
    assert found.n == 10
    assert clock.now_s == pytest.approx(0.02 * (3 + 10))


def test_a_call_is_timed_in_milliseconds(clock: Clock) -> None:
    assert milliseconds_of(clock.work) == pytest.approx(20)


def test_a_rate_is_items_over_the_median() -> None:
    times = Distribution.of([10.0, 20.0, 90.0])
    assert times is not None
    assert Measurement("decode", times, items=8, unit="tokens").per_second == 400
    assert Measurement("preprocess", times).per_second is None
