"""The energy that this machine takes, kept as an account: meters that are read in time, and what they have told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from devices.energy.gpu import find_gpu
from devices.energy.ina3221 import find_ina3221
from devices.energy.meter import Meter, MeterError
from devices.energy.rapl import find_rapl
from devices.energy.tegrastats import find_tegrastats

logger = logging.getLogger(__name__)

Find = Callable[[], Meter | str]
_OF_BOARD: tuple[Find, ...] = (find_ina3221, find_tegrastats)
"""The first that is there; it counts everything, so that no other is added."""
_OF_PARTS: tuple[Find, ...] = (find_rapl, find_gpu)
"""All that are there: none counts what another does."""


@dataclass(frozen=True)
class Entry:
    """What one meter has told.

    Attributes:
        name: Of the meter.
        covers: "board", "processor" or "gpu".
        joules: Since the account was opened.
    """

    name: str
    covers: str
    joules: float


def spent_joules(before: Sequence[Entry], after: Sequence[Entry]) -> float | None:
    """Return the energy that was taken between two looks at an account; None where no meter told it throughout."""
    told = {entry.name: entry.joules for entry in after}
    if not before or {entry.name for entry in before} != set(told):
        return None
    return sum(told[entry.name] - entry.joules for entry in before)


@dataclass(frozen=True)
class FoundMeters:
    """The meters of this machine, none of which counts what another counts.

    Attributes:
        meters: To be closed by whoever asked.
        silent: Why others are not among them, one line each.
    """

    meters: tuple[Meter, ...]
    silent: tuple[str, ...]


def find_meters(of_board: Sequence[Find] = _OF_BOARD, of_parts: Sequence[Find] = _OF_PARTS) -> FoundMeters:
    """Return the meters that can be read here, opened, and why the others cannot."""
    silent: list[str] = []
    for find in of_board:
        found = find()
        if not isinstance(found, str):
            return FoundMeters((found,), tuple(silent))
        silent.append(found)
    parts = [find() for find in of_parts]
    silent += [each for each in parts if isinstance(each, str)]
    return FoundMeters(tuple(each for each in parts if not isinstance(each, str)), tuple(silent))


class EnergyAccount:
    """Reads meters on a thread of its own, as often as they want, from `start` to `close`.

    Args:
        found: Closed with it.

    Attributes:
        silent: Why there are no other meters.
    """

    def __init__(self, found: FoundMeters | None = None) -> None:
        found = found or find_meters()
        self.silent = found.silent
        self._meters = list(found.meters)
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to read; nothing is begun where there is no meter."""
        if self._meters:
            threading.Thread(target=self._read_in_time, name="energy", daemon=True).start()

    def entries(self) -> tuple[Entry, ...]:
        """Return what each meter tells now. A meter that fails is told of once, and then no more part of the account:
        its energy is not known, which is not the same as none."""
        with self._lock:
            told = []
            for meter in tuple(self._meters):
                try:
                    told.append(Entry(meter.name, meter.covers, meter.joules()))
                except MeterError as error:
                    logger.warning("%s is read no more: %s", meter.name, error)
                    self._meters.remove(meter)
                    self.silent = (*self.silent, str(error))
                    meter.close()
            return tuple(told)

    def close(self) -> None:
        """Read no more."""
        self._ended.set()
        with self._lock:
            for meter in self._meters:
                meter.close()
            self._meters.clear()

    def __enter__(self) -> EnergyAccount:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_in_time(self) -> None:
        period_s = min(meter.period_s for meter in self._meters)
        while not self._ended.wait(period_s):
            self.entries()
