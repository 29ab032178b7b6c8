"""What of single layers is run, how often, and what is told of it."""

from __future__ import annotations

import pytest

from bundle.form import Form
from quant.planning.layer_runs import Seen, Timed, in_turn, time_layers
from quant.planning.plan import KEPT, Choice
from runtime import turns


class EvenClock:
    """Clocks by which whatever is timed takes as many milliseconds as they tick."""

    def __init__(self, wall_ms: float, thread_ms: float) -> None:
        self._tick_s = {"wall": wall_ms / 1e3, "thread": thread_ms / 1e3}
        self._now_s = {"wall": 0.0, "thread": 0.0}

    def perf_counter(self) -> float:
        return self._ticked("wall")

    def thread_time(self) -> float:
        return self._ticked("thread")

    def _ticked(self, clock: str) -> float:
        self._now_s[clock] += self._tick_s[clock]
        return self._now_s[clock]


def test_every_form_is_opened_anew_and_run_as_often_as_asked() -> None:
    wanted = [Timed(32, 16, choice, rows) for choice in (KEPT, Choice("w8a8", Form(8))) for rows in (1, 4)]
    told = time_layers(wanted, num_openings=2, turns=4)
    assert told.keys() == {timed.key for timed in wanted}
    assert all([len(runs) for runs in openings] == [4, 4] for openings in told.values())
    assert all(ms > 0 for openings in told.values() for runs in openings for ms in runs)


def test_few_rows_come_first_and_in_another_order_each_time() -> None:
    wanted = [Timed(32, outputs, KEPT, rows) for outputs in range(16, 24) for rows in (96, 1)]
    orders = [in_turn(wanted, seed) for seed in range(5)]
    assert all([timed.rows for timed in order] == [1] * 8 + [96] * 8 for order in orders)
    assert all(set(order) == set(wanted) for order in orders)
    assert len({tuple(order[:8]) for order in orders}) == len({tuple(order[8:]) for order in orders}) == 5


def test_a_large_layer_is_run_in_part_and_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "time", EvenClock(wall_ms=1, thread_ms=1))
    # 4 Mi weights are run at most: half of the second layer's, and each run takes as long as any other.
    whole, halved = Timed(512, 512, KEPT, 1), Timed(512, 1 << 14, KEPT, 1)
    found = time_layers([whole, halved], num_openings=1, turns=3)
    assert found[halved.key][0] == pytest.approx([2 * ms for ms in found[whole.key][0]])


def test_one_thread_is_timed_by_its_own_clock_and_several_by_the_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "time", EvenClock(wall_ms=30, thread_ms=10))
    timed = Timed(32, 16, KEPT, 1)
    one, two = (time_layers([timed], threads, num_openings=1, turns=3)[timed.key][0] for threads in (1, 2))
    # An empty graph takes as long: a tenth of what was seen is then the layer's own.
    assert one == pytest.approx([1.0] * 3)
    assert two == pytest.approx([3.0] * 3)


def test_runs_tell_the_least_and_the_least_of_a_middling_opening() -> None:
    assert Seen.of([[7.0, 4.0], [90.0, 2.0], [3.0, 50.0]]) == Seen(least_ms=2.0, usual_ms=3.0)
