"""Axes, grid and legend of a chart, and where a value lies in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pages.drawing import TEXT_PX, Drawing, Line, Part, Point, Text, elided, text_width_px
from pages.marks import Outline, mark
from pages.palette import Colour

WIDTH_PX = 430.0
"""Of a chart: the page shows it at 0.86 to 1.3 of that."""
_MOST_STEPS = 7
"""Between the ticks of an axis."""
_MOST_ROW_LETTERS = 30
"""Of a row's name, so that half of the chart is left for the plot."""
_MOST_LEGEND_LETTERS = 50
"""Of a name in the legend, so that it fits a line."""
_MOST_POWERS = 3.0
"""Of ten on a logarithmic axis, of which parts are named too."""
_LEAST_SPAN = 1e-6
"""Of an axis, so that values of 0 alone have one."""
_LINE_PX = 18.0
"""From one line of text to the next."""
_GAP_PX = 8.0
_RIGHT_PX, _BOTTOM_PX = 14.0, 38.0
_SWATCH_PX = 16.0


@dataclass(frozen=True)
class Axis:
    """An axis, straight or logarithmic.

    Attributes:
        title: What is measured, and its unit; empty where the ticks say it.
        start: The value at the left or at the bottom.
        end: The value at the right or at the top.
        ticks: Values that are named, with their names.
        has_grid: Whether lines lead from the ticks through the plot.
        is_logarithmic: Whether equal lengths are equal ratios; all values are above 0 then.
    """

    title: str
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]
    has_grid: bool = True
    is_logarithmic: bool = False

    @classmethod
    def logarithmic(cls, title: str, start: float, end: float) -> Axis:
        """Return a logarithmic axis of just these values, both above 0, with ticks at 1, 2 and 5 of each power of ten.

        Over more than three powers of ten only these are named.
        """
        powers = range(math.floor(math.log10(start)), math.ceil(math.log10(end)) + 1)
        factors = (1,) if math.log10(end / start) > _MOST_POWERS else (1, 2, 5)
        values = [factor * 10.0**power for power in powers for factor in factors]
        ticks = tuple((value, _tick(value)) for value in values if start * (1 - 1e-9) <= value <= end * (1 + 1e-9))
        return cls(title, start, end, ticks, is_logarithmic=True)

    @classmethod
    def between(cls, title: str, start: float, end: float) -> Axis:
        """Return an axis of just these values, with ticks at round numbers."""
        step = _round_step(end - start)
        ranks = range(math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9) + 1)
        return cls(title, start, end, tuple((step * rank, _tick(step * rank)) for rank in ranks))

    @classmethod
    def from_zero(cls, title: str, largest: float) -> Axis:
        """Return an axis from 0 to the round number that holds the largest value."""
        step = _round_step(largest)
        return cls.between(title, 0.0, step * max(1, math.ceil(largest / step - 1e-9)))

    @classmethod
    def of_rows(cls, names: Sequence[str]) -> Axis:
        """Return an upright axis of rows: the first lies at 0, at the top."""
        ticks = tuple((float(row), elided(name, _MOST_ROW_LETTERS)) for row, name in enumerate(names))
        return cls("", len(names) - 0.5, -0.5, ticks, has_grid=False)

    def share(self, value: float) -> float:
        """Return how far along the axis a value lies, 0 to 1; at its ends for what lies beyond them."""
        if self.is_logarithmic:
            value = max(float(value), self.start)
            share = math.log(value / self.start) / math.log(self.end / self.start)
        else:
            share = (float(value) - self.start) / (self.end - self.start)
        return min(max(share, 0.0), 1.0)


def _round_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten: the least of which few make up the span."""
    rough = max(span, _LEAST_SPAN) / _MOST_STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def _tick(value: float) -> str:
    return f"{value:,.10g}"


@dataclass(frozen=True)
class Entry:
    """One name in a legend."""

    name: str
    colour: Colour
    outline: Outline

    @property
    def shown(self) -> str:
        """The name, as much of it as fits."""
        return elided(self.name, _MOST_LEGEND_LETTERS)


@dataclass(frozen=True)
class Plot:
    """The frame of a chart.

    Attributes:
        x: The axis below.
        y: The axis at the left; its title stands above the plot.
        height_px: Of the plot alone.
        legend: Above the plot.
    """

    x: Axis
    y: Axis
    height_px: float
    legend: tuple[Entry, ...] = ()

    @property
    def left_px(self) -> float:
        """Where the plot begins."""
        return max(text_width_px(name) for _, name in self.y.ticks) + _GAP_PX

    @property
    def right_px(self) -> float:
        """Where the plot ends."""
        return WIDTH_PX - _RIGHT_PX

    @property
    def top_px(self) -> float:
        """Where the plot begins, below legend and title."""
        num_lines = len({y for _, (_, y) in self._entries()}) + bool(self.y.title)
        return _LINE_PX * num_lines + _GAP_PX

    @property
    def bottom_px(self) -> float:
        """Where the plot ends."""
        return self.top_px + self.height_px

    def at(self, x: float, y: float) -> Point:
        """Return where a pair of values lies."""
        width_px = self.right_px - self.left_px
        return self.left_px + width_px * self.x.share(x), self.bottom_px - self.height_px * self.y.share(y)

    def drawing(self, title: str, parts: Sequence[Part]) -> Drawing:
        """Return the chart: parts over the grid, and texts around them."""
        whole = [*self._grid(), *parts, *self._texts()]
        return Drawing(title, WIDTH_PX, self.bottom_px + _BOTTOM_PX, whole)

    def _grid(self) -> Iterator[Part]:
        if self.x.has_grid:
            for value, _ in self.x.ticks:
                yield Line([self.at(value, self.y.start), self.at(value, self.y.end)], "line")
        if self.y.has_grid:
            for value, _ in self.y.ticks:
                yield Line([self.at(self.x.start, value), self.at(self.x.end, value)], "line")
        yield Line([self.at(self.x.start, self.y.start), self.at(self.x.end, self.y.start)], "soft")

    def _texts(self) -> Iterator[Part]:
        for value, name in self.x.ticks:
            yield Text((self.at(value, self.y.start)[0], self.bottom_px + 15), name, "middle")
        for value, name in self.y.ticks:
            yield Text((self.left_px - _GAP_PX, self.at(self.x.start, value)[1] + TEXT_PX / 3), name, "end")
        yield Text(((self.left_px + self.right_px) / 2, self.bottom_px + 32), self.x.title, "middle")
        if self.y.title:
            yield Text((0.0, self.top_px - _GAP_PX - 4), self.y.title)
        for entry, (x, y) in self._entries():
            yield mark(entry.outline, (x + 5, y - TEXT_PX / 3), entry.colour)
            yield Text((x + _SWATCH_PX, y), entry.shown, colour="ink")

    def _entries(self) -> Iterator[tuple[Entry, Point]]:
        """Yield the legend's entries and where each begins, as many to a line as it holds."""
        x, y = 0.0, TEXT_PX * 1.0
        for entry in self.legend:
            width_px = _SWATCH_PX + text_width_px(entry.shown)
            if x and x + width_px > WIDTH_PX:
                x, y = 0.0, y + _LINE_PX
            yield entry, (x, y)
            x += width_px + _SWATCH_PX
