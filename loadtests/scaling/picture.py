"""Replicas and first tokens over the time of a run, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtests.samples import RequestSample
from loadtests.scaling.steps import Step
from pages.drawing import Drawing, Line, Part, below
from pages.marks import OUTLINES
from pages.palette import SERIES
from pages.plot import Axis, Entry, Plot

_HEIGHT_PX = 120.0
WINDOW_S = 10.0
"""Of the requests behind each percentile."""
_LEAST_REQUESTS = 3
"""In a window; of fewer, no percentile is drawn."""


@dataclass(frozen=True)
class Replicas:
    """How many replicas answered from a time on, in seconds into the run."""

    time_s: float
    num_running: int


def scaling_picture(
    steps: Sequence[Step], replicas: Sequence[Replicas], samples: Sequence[RequestSample], end_s: float
) -> Drawing:
    """Return users and replicas above, the 95th percentile of first tokens below, over the same seconds.

    Args:
        steps: That were sent.
        replicas: In order, at least one.
        samples: Of the whole run; those that failed are left out.
        end_s: Where the pictures end.
    """
    return below(_counts(steps, replicas, end_s), _latencies(samples, end_s))


def _counts(steps: Sequence[Step], replicas: Sequence[Replicas], end_s: float) -> Drawing:
    most = max(*(step.users for step in steps), *(each.num_running for each in replicas))
    legend = (Entry("users", SERIES[1], OUTLINES[1]), Entry("replicas", SERIES[0], OUTLINES[0]))
    plot = Plot(Axis.between("", 0.0, end_s), Axis.from_zero("", most), _HEIGHT_PX, legend)
    starts = np.cumsum([0, *(step.duration_s for step in steps)]).tolist()
    users = [*zip(starts, [step.users for step in steps], strict=False), (starts[-1], 0)]
    counts = [(each.time_s, each.num_running) for each in replicas]
    lines: list[Part] = [
        Line([plot.at(*point) for point in _stairs(users, end_s)], SERIES[1], 1.8, is_dashed=True),
        Line([plot.at(*point) for point in _stairs(counts, end_s)], SERIES[0], 2.4),
    ]
    return plot.drawing("users and replicas by seconds into the run", lines)


def _latencies(samples: Sequence[RequestSample], end_s: float) -> Drawing:
    points = percentiles(samples, end_s)
    plot = Plot(
        Axis.between("seconds into the run", 0.0, end_s),
        Axis.from_zero(
            f"first token, ms: p95 of the {WINDOW_S:g} s before", max((ms for _, ms in points), default=1.0)
        ),
        _HEIGHT_PX,
    )
    lines = [Line([plot.at(*point) for point in part], SERIES[2], 2.0) for part in _unbroken(points)]
    return plot.drawing("first token, 95th percentile, by seconds into the run", lines)


def percentiles(samples: Sequence[RequestSample], end_s: float) -> list[tuple[float, float]]:
    """Return (second, milliseconds): the 95th percentile of first tokens of requests begun in the window before."""
    told = [(each.started_s, each.ttft_ms) for each in samples if each.error is None and each.ttft_ms is not None]
    points = []
    for second in range(1, int(end_s) + 1):
        values = [ms for started_s, ms in told if second - WINDOW_S <= started_s < second]
        if len(values) >= _LEAST_REQUESTS:
            points.append((float(second), float(np.percentile(values, 95))))
    return points


def _stairs(points: Sequence[tuple[float, int]], end_s: float) -> list[tuple[float, float]]:
    """Return the corners of a line that stays at each value until the next."""
    corners = list[tuple[float, float]]()
    for at, (time_s, value) in enumerate(points):
        until_s = points[at + 1][0] if at + 1 < len(points) else end_s
        corners += [(time_s, float(value)), (min(until_s, end_s), float(value))]
    return corners


def _unbroken(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Return stretches of points that are a second apart."""
    parts = list[list[tuple[float, float]]]()
    for point in points:
        if parts and point[0] - parts[-1][-1][0] <= 1.0:
            parts[-1].append(point)
        else:
            parts.append([point])
    return parts
