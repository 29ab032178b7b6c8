"""Two charts of a latency: how it is distributed, and how it went over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from loadtests.distribution import Distribution
from loadtests.wording import number
from pages.drawing import Dots, Drawing, Line, Part, Shape, Text, rectangle
from pages.palette import SERIES
from pages.plot import Axis, Plot

_HEIGHT_PX = 140.0
_MOST_MARKS = 1500
"""Points drawn per chart; more are thinned evenly, so that a page stays small."""
_SHARES = Axis("% of measurements within x ms", 0.0, 100.0, tuple((float(s), str(s)) for s in (0, 25, 50, 75, 100)))

Item = TypeVar("Item")


def distribution_chart(name: str, values_ms: Sequence[float]) -> Drawing:
    """Return the share of measurements that took at most x milliseconds, with p50 and p95 marked.

    Args:
        name: What was measured.
        values_ms: At least one.
    """
    stats = Distribution.of(values_ms)
    if stats is None:
        raise ValueError("a chart of no values")
    plot = Plot(Axis.from_zero("ms", max(values_ms)), _SHARES, _HEIGHT_PX)
    steps, before = [plot.at(0, 0)], 0.0
    for rank, value in _thinned(list(enumerate(np.sort(values_ms).tolist(), start=1))):
        share = 100 * rank / len(values_ms)
        steps += [plot.at(value, before), plot.at(value, share)]
        before = share
    marks = [part for at, rank in enumerate(("p50", "p95")) for part in _percentile(plot, rank, stats, at)]
    return plot.drawing(f"{name}: {_SHARES.title}", [*marks[::2], Line(steps, SERIES[0], 1.8), *marks[1::2]])


def _percentile(plot: Plot, name: str, stats: Distribution, at: int) -> tuple[Part, Part]:
    """Return an upright line and its name, beside it where there is room and one above the other."""
    value = stats.statistic(name)
    x, y = plot.at(value, 22 - 16 * at)
    is_right = plot.x.share(value) > 0.75
    told = Text(
        (x - 4 if is_right else x + 4, y), f"{name} {number(value)}", "end" if is_right else "start", "ink", True
    )
    return Line([plot.at(value, 0), plot.at(value, 100)], "soft"), told


def time_chart(name: str, points: Sequence[tuple[float, float]], end_s: float, warmup_s: float) -> Drawing:
    """Return one dot per measurement: when it began, and what it took.

    Args:
        name: What was measured.
        points: (seconds into the run, milliseconds), at least one.
        end_s: Where the x axis ends, at least.
        warmup_s: The shaded part before it was not measured.
    """
    most_ms = max(milliseconds for _, milliseconds in points)
    plot = Plot(Axis.from_zero("seconds into the run", end_s), Axis.from_zero("ms", most_ms), _HEIGHT_PX)
    (left, bottom), (right, top) = plot.at(0, 0), plot.at(warmup_s, plot.y.end)
    shade = Shape(rectangle(left, top, right, bottom), "line", opacity=0.5)
    dots = Dots([plot.at(*point) for point in _thinned(points)], SERIES[0])
    return plot.drawing(f"{name}: ms by seconds into the run", [shade, dots])


def _thinned(items: Sequence[Item]) -> list[Item]:
    """Return at most so many items, evenly spaced, the first and the last among them."""
    return [items[at] for at in np.unique(np.linspace(0, len(items) - 1, _MOST_MARKS).astype(int))]
