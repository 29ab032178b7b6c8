"""The distribution of one work's runs, and a rate of it. When it is enough: tests/runtime/test_turns.py."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from loadtests.distribution import Distribution
from loadtests.stopwatch import Measurement, Stopwatch
from runtime import turns


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


def test_work_is_timed_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()  # a clock that every look moves by one
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    found = Stopwatch(warmup=1, repeats=3, budget_s=1e6).time(lambda: None)
    assert (found.n, found.p50) == (3, 1000)


def test_a_rate_is_items_over_the_median() -> None:
    times = Distribution.of([10.0, 20.0, 90.0])
    assert times is not None
    assert Measurement("decode", times, items=8, unit="tokens").per_second == 400
    assert Measurement("preprocess", times).per_second is None
