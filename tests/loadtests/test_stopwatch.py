"""The distribution of one work's runs, and a rate of it. When it is enough: tests/runtime/test_turns.py."""

from __future__ import annotations

import asyncio
import time

from loadtests.distribution import Distribution
from loadtests.stopwatch import Measurement, Stopwatch


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


def test_work_is_timed_in_milliseconds() -> None:
    found = Stopwatch(warmup=1, repeats=3).time(lambda: time.sleep(0.02))
    assert found.n == 3
    assert 20 <= found.p50 < 2000


def test_a_rate_is_items_over_the_median() -> None:
    times = Distribution.of([10.0, 20.0, 90.0])
    assert times is not None
    assert Measurement("decode", times, items=8, unit="tokens").per_second == 400
    assert Measurement("preprocess", times).per_second is None
