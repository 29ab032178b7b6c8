"""Two charts as inline SVG: how a latency is distributed, and how it went over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from loadtests.distribution import Distribution

WIDTH_PX, HEIGHT_PX = 460, 190
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 52, 12, 10, 34
_PLOT_WIDTH_PX = WIDTH_PX - _LEFT_PX - _RIGHT_PX
_PLOT_HEIGHT_PX = HEIGHT_PX - _TOP_PX - _BOTTOM_PX
_MAX_MARKS = 1500
"""Points drawn per chart; more are thinned evenly, so that a page stays small."""
_NUM_TICKS = 5
_LEAST_SPAN = 1e-6
"""Of an axis, so that values of 0 alone have one."""


def distribution_chart(values: Sequence[float]) -> str:
    """Return the share of measurements (y, 0 to 100 %) that took at most x milliseconds, with p50 and p95 marked.

    Args:
        values: Milliseconds, at least one.
    """
    stats = Distribution.of(values)
    if stats is None:
        raise ValueError("a chart of no values")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    kept = np.unique(np.linspace(0, len(ordered) - 1, _MAX_MARKS).astype(int))
    x_ticks = _ticks(float(ordered[-1]))
    x_end = x_ticks[-1]
    steps = [f"{_x(0, x_end):.1f},{_y(0, 100):.1f}"]
    before = 0.0
    for rank in kept:
        x = _x(ordered[rank], x_end)
        share = (rank + 1) / len(ordered) * 100
        steps += [f"{x:.1f},{_y(before, 100):.1f}", f"{x:.1f},{_y(share, 100):.1f}"]
        before = share
    marks = "".join(_percentile_mark(name, stats.statistic(name), x_end) for name in ("p50", "p95"))
    body = f'<polyline class="line" points="{" ".join(steps)}"/>{marks}'
    return _frame("% of measurements within x ms", body, x_ticks, (0.0, 25.0, 50.0, 75.0, 100.0))


def _percentile_mark(name: str, value: float, x_end: float) -> str:
    x = _x(value, x_end)
    anchor, offset = ("end", -4) if x > WIDTH_PX * 0.75 else ("start", 4)
    y = HEIGHT_PX - _BOTTOM_PX - (24 if name == "p50" else 8)
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP_PX}" y2="{HEIGHT_PX - _BOTTOM_PX}"/>'
        f'<text x="{x + offset:.1f}" y="{y}" text-anchor="{anchor}">{name} {_number(value)}</text>'
    )


def time_chart(points: Sequence[tuple[float, float]], end_s: float, warmup_s: float) -> str:
    """Return one dot per measurement: when it began (x, seconds) and what it took (y, milliseconds).

    Args:
        points: (seconds, milliseconds), at least one.
        end_s: Where the x axis ends.
        warmup_s: The shaded part before it was not measured.
    """
    kept = np.unique(np.linspace(0, len(points) - 1, _MAX_MARKS).astype(int))
    x_ticks, y_ticks = _ticks(end_s), _ticks(max(milliseconds for _, milliseconds in points))
    dots = "".join(
        f'<circle cx="{_x(points[i][0], x_ticks[-1]):.1f}" cy="{_y(points[i][1], y_ticks[-1]):.1f}" r="2"/>'
        for i in kept
    )
    shade_px = _x(warmup_s, x_ticks[-1]) - _LEFT_PX
    shade = f'<rect class="warmup" x="{_LEFT_PX}" y="{_TOP_PX}" width="{shade_px:.1f}" height="{_PLOT_HEIGHT_PX}"/>'
    return _frame("ms, by seconds into the run", shade + f'<g class="dots">{dots}</g>', x_ticks, y_ticks)


def _x(value: float, end: float) -> float:
    return _LEFT_PX + _PLOT_WIDTH_PX * min(float(value), end) / end


def _y(value: float, end: float) -> float:
    return _TOP_PX + _PLOT_HEIGHT_PX * (1 - min(float(value), end) / end)


def _ticks(largest: float) -> tuple[float, ...]:
    """Return round numbers from 0 to at least `largest`: steps of 1, 2 or 5 times a power of ten."""
    rough = max(largest, _LEAST_SPAN) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return tuple(step * i for i in range(max(1, math.ceil(largest / step - 1e-9)) + 1))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _frame(caption: str, body: str, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    """Return a whole SVG: grid and tick labels, the body drawn over them, and a caption that says what y and x are."""
    bottom, right = HEIGHT_PX - _BOTTOM_PX, WIDTH_PX - _RIGHT_PX
    grid = [
        f'<line class="grid" x1="{_LEFT_PX}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT_PX - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        for tick in y_ticks
        for y in [_y(tick, y_ticks[-1])]
    ]
    grid += [
        f'<text x="{_x(tick, x_ticks[-1]):.1f}" y="{bottom + 16}" text-anchor="middle">{_number(tick)}</text>'
        for tick in x_ticks
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="{caption}">{"".join(grid)}{body}'
        f'<text x="{(_LEFT_PX + right) / 2}" y="{bottom + 31}" text-anchor="middle">{caption}</text></svg>'
    )
