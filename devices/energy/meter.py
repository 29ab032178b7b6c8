"""What an energy meter is, and how a meter of power becomes one of energy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class MeterError(Exception):
    """A meter told nothing; what it told before stays true, and nothing is known of what came since."""


class Meter(Protocol):
    """A source of energy readings.

    Attributes:
        name: What is read, such as "INA3221 VDD_IN".
        covers: Whose energy it is: "board", "processor" or "gpu". A board's holds the others'.
        period_s: It must be read at least so often, or something is lost.
    """

    name: str
    covers: str
    period_s: float

    def joules(self) -> float:
        """Return the energy since the meter was opened, never less than before. Not for two threads at once.

        Raises:
            MeterError: It cannot be read.
        """
        ...

    def close(self) -> None:
        """Let go of what is read."""
        ...


class PowerIntegral:
    """Energy of a power that is read again and again: the trapezoids between readings.

    Args:
        watts: Reads the power.
        clock: Seconds.

    Attributes:
        watts: As given.
    """

    def __init__(self, watts: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self.watts = watts
        self._clock = clock
        self._last_watts, self._last_s = watts(), clock()
        self._joules = 0.0

    def joules(self) -> float:
        """Read the power, and return the energy since construction."""
        watts, now_s = self.watts(), self._clock()
        self._joules += (watts + self._last_watts) / 2 * (now_s - self._last_s)
        self._last_watts, self._last_s = watts, now_s
        return self._joules


class Counted:
    """Energy of a counter that goes round: what was added since construction.

    Args:
        read: Returns the counter.
        joules_per_count: Of its unit.
        range_counts: It begins at 0 again after so many; None: it never does.
    """

    def __init__(self, read: Callable[[], int], joules_per_count: float, range_counts: int | None = None) -> None:
        self._read = read
        self._joules_per_count = joules_per_count
        self._range_counts = range_counts
        self._last = read()
        self._counts = 0

    def joules(self) -> float:
        """Read the counter, and return the energy since construction.

        A counter that fell and has no range began anew (a driver was loaded): what it shows was added since.
        """
        now = self._read()
        step = now - self._last
        if step < 0:
            step = now if self._range_counts is None else step + self._range_counts
        self._last = now
        self._counts += step
        return self._counts * self._joules_per_count
