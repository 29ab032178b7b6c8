"""What counts, how often, in which order, and when it is enough."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from runtime.turns import MIN_ROUNDS, Quartiles, Turns, milliseconds_of


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


def test_slow_work_is_warmed_up_once_and_repeated_the_least_often() -> None:
    calls: list[float] = []

    def slow() -> None:
        time.sleep(0.02)
        calls.append(time.perf_counter())

    assert len(Turns(warmup=10, repeats=50, budget_s=0.01).run({"slow": slow})["slow"]) == MIN_ROUNDS
    assert len(calls) == 1 + MIN_ROUNDS


def test_the_budget_ends_rounds_between_the_least_and_the_most() -> None:
    turns = Turns(warmup=0, repeats=10_000, budget_s=0.2)
    found = turns.run({"a": lambda: time.sleep(0.01)})["a"]
    assert MIN_ROUNDS <= len(found) <= 21


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


def test_a_call_is_timed_in_milliseconds() -> None:
    assert 20 <= milliseconds_of(lambda: time.sleep(0.02)) < 2000
