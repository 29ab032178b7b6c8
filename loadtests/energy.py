"""The energy that a server's own meters told while it was loaded, read from its metrics page as the load runs."""

from __future__ import annotations

import http.client
import itertools
import re
import threading
import time
import urllib.request
from dataclasses import dataclass
from types import TracebackType

_PERIOD_S = 1.0
_TIMEOUT_S = 5.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The load goes to the stated host whatever the environment says of proxies, and so do its readings."""
_JOULES = re.compile(r"^pocketvlm:energy_joules_total\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Point:
    """What all meters together had told at a moment, by the wall clock."""

    at_s: float
    joules: float


def joules_told(page: str) -> float | None:
    """Return what all meters of a metrics page tell together; None where it tells of none."""
    found = _JOULES.findall(page)
    return sum(map(float, found)) if found else None


def joules_between(points: tuple[Point, ...], start_s: float, end_s: float) -> float | None:
    """Return the energy of a span, interpolated; None where the points do not hold it, or a server began anew."""
    if not points or points[0].at_s > start_s or points[-1].at_s < end_s:
        return None
    if any(later.joules < earlier.joules for earlier, later in itertools.pairwise(points)):
        return None
    return _at(points, end_s) - _at(points, start_s)


def _at(points: tuple[Point, ...], moment_s: float) -> float:
    for earlier, later in itertools.pairwise(points):
        if earlier.at_s <= moment_s <= later.at_s:
            share = (moment_s - earlier.at_s) / (later.at_s - earlier.at_s)
            return earlier.joules + share * (later.joules - earlier.joules)
    return points[-1].joules


class ServerEnergy:
    """Reads a server's metrics once a second while the block lasts; a server that tells no energy gives no points.

    Args:
        url: Of the server, without path.
    """

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/metrics"
        self._points: list[Point] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)

    @property
    def points(self) -> tuple[Point, ...]:
        """In order of time."""
        return tuple(self._points)

    def __enter__(self) -> ServerEnergy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while self._read() and not self._ended.wait(_PERIOD_S):
            pass
        if self._points:
            self._read()  # so that the last point lies behind the load's end

    def _read(self) -> bool:
        """Add a point; return False where the server tells no energy at all."""
        try:
            with _DIRECT.open(self._url, timeout=_TIMEOUT_S) as answer:
                joules = joules_told(answer.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            return True  # busy; the next look may be answered
        if joules is not None:
            self._points.append(Point(time.time(), joules))
        return joules is not None
