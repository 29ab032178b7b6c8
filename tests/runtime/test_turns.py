"""What counts, how often, in which order, and when it is enough."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from runtime import turns
from runtime.turns import MIN_ROUNDS, Quartiles, Turns, milliseconds_of, thread_milliseconds_of


def test_works_take_turns_and_warm_up_rounds_do_not_count() -> None:
    calls: list[str] = []

    def work(name: str) -> Callable[[], str]:
        def run() -> str:
            calls.append(name)
            return f"{name}{len(calls)}"

        return run

    told = Turns(warmup=1, repeats=4).run({"a": work("a"), "b": work("b")})
    assert calls == ["a", "b"] * 5
    assert told == {"a": ["a3", "a5", "a7", "a9"], "b": ["b4", "b6", "b8", "b10"]}


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


def test_slow_work_is_warmed_up_once_and_repeated_the_least_often(clock: Clock) -> None:
    found = Turns(warmup=10, repeats=50, budget_s=0.01).run({"slow": clock.work})["slow"]
    assert len(found) == MIN_ROUNDS
    assert clock.now_s == pytest.approx(0.02 * (1 + MIN_ROUNDS))


def test_a_quarter_of_the_budget_goes_to_warm_up_and_no_round_begins_after_it(clock: Clock) -> None:
    found = Turns(warmup=10, repeats=50, budget_s=0.19).run({"work": clock.work})["work"]
    # Warm-up rounds begin at 0, 20 and 40 ms of 47.5; those that count at 0, 20, ..., 180 ms of 190.
    assert len(found) == 10
    assert clock.now_s == pytest.approx(0.02 * (3 + 10))


def test_every_work_of_a_round_is_run_though_the_budget_ends_within_it(clock: Clock) -> None:
    found = Turns(warmup=1, repeats=50, budget_s=0.13).run({"a": clock.work, "b": clock.work})
    assert len(found["a"]) == len(found["b"]) == 4  # rounds of 40 ms, which begin at 0, 40, 80 and 120


def test_work_without_a_budget_runs_as_often_as_asked_for_and_at_least_thrice() -> None:
    assert [len(Turns(0, repeats).run({0: int})[0]) for repeats in (1, 3, 25)] == [MIN_ROUNDS, 3, 25]


def test_what_fails_in_a_turn_ends_it() -> None:
    with pytest.raises(ZeroDivisionError):
        Turns(0, 3).run({"a": lambda: 1 / 0})


def test_quartiles_are_numpys() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 9.0, 7.0]
    assert Quartiles.of(values) == Quartiles(*np.quantile(values, [0.25, 0.5, 0.75]))
    assert str(Quartiles(1.375, 1.43, 1.512)) == "1.43 (1.38-1.51)"


def test_ratios_are_taken_within_each_round() -> None:
    slower, faster = (
        [10.0, 100.0, 12.0],
        [5.0, 20.0, 4.0],
    )  # 2, 5 and 3 times: the second round was disturbed as a whole
    assert Quartiles.of_ratios(slower, faster) == Quartiles(2.5, 3, 4)
    assert np.median(slower) / np.median(faster) == pytest.approx(2.4)


def test_a_call_is_timed_in_milliseconds(clock: Clock) -> None:
    assert milliseconds_of(clock.work) == pytest.approx(20)


def test_what_a_thread_waits_for_is_none_of_its_own_time() -> None:
    assert thread_milliseconds_of(lambda: time.sleep(0.05)) < 25

    def count() -> None:
        end_s = time.thread_time() + 0.02
        while time.thread_time() < end_s:
            pass

    assert thread_milliseconds_of(count) >= 20
