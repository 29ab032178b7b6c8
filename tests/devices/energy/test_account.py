"""An account adds up what is not counted twice, and never takes silence for zero."""

from __future__ import annotations

import logging
import time

from devices.energy.account import EnergyAccount, Entry, FoundMeters, find_meters, spent_joules
from devices.energy.meter import MeterError


class Ticking:
    """A meter that tells one joule more each time, until it breaks."""

    def __init__(self, name: str = "fake", covers: str = "board", breaks_at: int = 1 << 30) -> None:
        self.name, self.covers, self.period_s = name, covers, 0.01
        self.num_reads, self._breaks_at, self.is_closed = 0, breaks_at, False

    def joules(self) -> float:
        self.num_reads += 1
        if self.num_reads >= self._breaks_at:
            raise MeterError(f"{self.name} broke")
        return float(self.num_reads)

    def close(self) -> None:
        self.is_closed = True


def test_a_boards_meter_is_taken_alone_and_parts_are_added_otherwise() -> None:
    board, processor, gpu = Ticking("b"), Ticking("p", "processor"), Ticking("g", "gpu")
    of_parts = (lambda: processor, lambda: gpu)
    assert find_meters((lambda: "no first", lambda: board), of_parts).meters == (board,)
    found = find_meters((lambda: "no first", lambda: "no second"), (*of_parts, lambda: "no third"))
    assert found.meters == (processor, gpu)
    assert found.silent == ("no first", "no second", "no third")


def test_what_was_spent_is_the_difference_and_unknown_where_a_meter_came_or_went() -> None:
    before = (Entry("p", "processor", 5.0), Entry("g", "gpu", 1.0))
    assert spent_joules(before, (Entry("p", "processor", 7.0), Entry("g", "gpu", 1.5))) == 2.5
    assert spent_joules(before, before[:1]) is None
    assert spent_joules((), ()) is None


def test_meters_are_read_in_time_while_nobody_asks_and_closed_at_the_end() -> None:
    meter = Ticking()
    with EnergyAccount(FoundMeters((meter,), ())):
        deadline_s = time.monotonic() + 20
        while meter.num_reads < 3 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert meter.num_reads >= 3
    assert meter.is_closed


def test_a_meter_that_fails_is_told_of_once_and_tells_no_zero(caplog) -> None:
    account = EnergyAccount(FoundMeters((Ticking("good"), Ticking("bad", "gpu", breaks_at=2)), ()))
    first = account.entries()
    with caplog.at_level(logging.WARNING):
        second, third = account.entries(), account.entries()
    assert [entry.name for entry in first] == ["good", "bad"]
    assert [entry.name for entry in (*second, *third)] == ["good", "good"]
    assert caplog.text.count("bad is read no more") == 1
    assert account.silent == ("bad broke",)
    assert spent_joules(first, second) is None
