"""A chart of points with names and whiskers, of which none covers another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pages.drawing import Drawing, Line, Text, elided, text_width_px
from pages.label_places import FAR_PX, Box, place_labels
from pages.marks import OUTLINES, Outline, mark
from pages.palette import SERIES, Colour
from pages.plot import Plot
from quant.comparison.variants import Siblings, Variant
from runtime.turns import Quartiles

_MOST_LETTERS = 30
"""Of a point's name."""
_MARK_PX = 7.0
"""Half the width that a point keeps free of names."""


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: Part of the PNG's file name.
        caption: How to read it.
        drawing: Its title says what it shows, in a line.
    """

    name: str
    caption: str
    drawing: Drawing


@dataclass(frozen=True)
class Span:
    """A value and the whisker through it."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Span:
        """Return a value without a whisker."""
        return cls(value, value, value)

    @classmethod
    def of(cls, quartiles: Quartiles) -> Span:
        """Return a median with its quartiles for a whisker."""
        return cls(quartiles.median, quartiles.low, quartiles.high)


@dataclass(frozen=True)
class Look:
    """How a point is told from the others."""

    colour: Colour
    outline: Outline
    is_filled: bool


@dataclass(frozen=True)
class Point:
    """Where something stands, and how it looks."""

    label: str
    x: Span
    y: Span
    look: Look


@dataclass(frozen=True)
class Front:
    """A line from point to point."""

    points: Sequence[Point]
    colour: Colour


@dataclass(frozen=True)
class Level:
    """A dashed line across the plot, with its name."""

    value: float
    name: str


def look_of(siblings: Siblings, variant: Variant) -> Look:
    """Return how a variant is told from its siblings, the same in every chart."""
    at = siblings.variants.index(variant)
    return Look(SERIES[at % len(SERIES)], OUTLINES[at % len(OUTLINES)], variant.verdict == "passed")


def scatter(
    title: str, plot: Plot, points: Sequence[Point], fronts: Sequence[Front] = (), levels: Sequence[Level] = ()
) -> Drawing:
    """Return the chart: names stand where they cover neither points nor whiskers nor each other, if anywhere."""
    lines = [Line([_place(plot, point) for point in front.points], front.colour) for front in fronts if front.points]
    whiskers = [line for point in points for line in _whiskers(plot, point)]
    marks = [
        mark(point.look.outline, _place(plot, point), point.look.colour, is_filled=point.look.is_filled)
        for point in points
    ]
    dashes, told = _levels(plot, levels, points)
    leaders, names = _leaders_and_names(plot, points, told)
    return plot.drawing(title, [*dashes, *lines, *whiskers, *leaders, *marks, *told, *names])


def _place(plot: Plot, point: Point) -> tuple[float, float]:
    return plot.at(point.x.value, point.y.value)


def _whiskers(plot: Plot, point: Point) -> Iterator[Line]:
    x, y = point.x, point.y
    yield Line([plot.at(x.low, y.value), plot.at(x.high, y.value)], point.look.colour)
    yield Line([plot.at(x.value, y.low), plot.at(x.value, y.high)], point.look.colour)


def _levels(plot: Plot, levels: Sequence[Level], points: Sequence[Point]) -> tuple[list[Line], list[Text]]:
    """Return the lines, and each one's name at the place along it that is farthest from all points."""
    dashes, names = [], []
    marks = [Box.around(*_place(plot, point), _MARK_PX) for point in points]
    for level in levels:
        (left, y), (right, _) = plot.at(plot.x.start, level.value), plot.at(plot.x.end, level.value)
        texts = [Text((x, y - 4), level.name, "end", "bad", has_halo=True) for x in _places_along(left, right, level)]
        names.append(max(texts, key=lambda text: min(Box.of_text(text).distance(mark) for mark in marks)))
        dashes.append(Line([(left, y), (right, y)], "bad", is_dashed=True))
    return dashes, names


def _places_along(left: float, right: float, level: Level) -> list[float]:
    """Return where a name may end, the right end first."""
    first = left + text_width_px(level.name) + 4
    return [right - 2 - share / 6 * (right - 2 - first) for share in range(7)]


def _leaders_and_names(plot: Plot, points: Sequence[Point], others: Sequence[Text]) -> tuple[list[Line], list[Text]]:
    """Return each point's name where it covers nothing, and lines to those that are not beside their points."""
    names = [elided(point.label, _MOST_LETTERS) for point in points]
    marks = [Box.around(*_place(plot, point), _MARK_PX) for point in points]
    taken = [Box.along(*line.points) for point in points for line in _whiskers(plot, point)]
    inside = Box(plot.left_px, plot.top_px, plot.right_px, plot.bottom_px)
    places = place_labels(names, marks, [*taken, *(Box.of_text(text) for text in others)], inside)
    far = [(mark, place) for mark, place in zip(marks, places, strict=True) if place.distance(mark) > FAR_PX]
    leaders = [Line([mark.centre, place.nearest(mark.centre)], "soft", 0.8) for mark, place in far]
    return leaders, [_beside(mark, place, name) for mark, place, name in zip(marks, places, names, strict=True)]


def _beside(mark: Box, place: Box, name: str) -> Text:
    """Return a name at the end of its place that is near its point: a place is on the wide side."""
    x, (left, right) = mark.centre[0], (place.left, place.right)
    if right < x:
        return Text((right, place.bottom - 2), name, "end", "ink", has_halo=True)
    if left > x:
        return Text((left, place.bottom - 2), name, "start", "ink", has_halo=True)
    return Text((place.centre[0], place.bottom - 2), name, "middle", "ink", has_halo=True)
