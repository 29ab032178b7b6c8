"""What a chart is made of: lines, shapes, dots and texts in colours of the palette. `svg` and `png` write it out.

Coordinates are pixels of the page, x to the right and y down, as in SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias
from unicodedata import east_asian_width

from pages.palette import Colour

Point: TypeAlias = tuple[float, float]

TEXT_PX = 12
"""Of every text. The narrowest page that we look at shows a chart at 0.86 of its size."""
_LETTER_PX = 0.64 * TEXT_PX
"""On the wide side: fonts differ from page to page, and none is asked."""


@dataclass(frozen=True)
class Line:
    """Straight pieces from point to point."""

    points: Sequence[Point]
    colour: Colour
    width_px: float = 1.0
    is_dashed: bool = False


@dataclass(frozen=True)
class Shape:
    """A closed outline.

    Attributes:
        points: Its corners.
        fill: Of its inside.
        edge: Of its outline; None draws none.
        opacity: Of the inside, 0 to 1.
    """

    points: Sequence[Point]
    fill: Colour
    edge: Colour | None = None
    opacity: float = 1.0


@dataclass(frozen=True)
class Dots:
    """Many points alike, which may lie upon each other."""

    centres: Sequence[Point]
    colour: Colour
    radius_px: float = 2.0
    opacity: float = 0.55


@dataclass(frozen=True)
class Text:
    """One line of text.

    Attributes:
        at: Where its baseline starts, has its middle, or ends.
        text: Any.
        anchor: Which of these.
        colour: Of the letters.
        has_halo: Whether the ground shows around the letters, so that they are read over lines.
    """

    at: Point
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    colour: Colour = "soft"
    has_halo: bool = False


Part: TypeAlias = Line | Shape | Dots | Text

DASH_PX, DASH_GAP_PX = 5.0, 4.0
"""Of dashed lines."""
EDGE_PX = 1.6
"""Of the outlines of shapes."""
HALO_PX = 4.0


@dataclass(frozen=True)
class Drawing:
    """A chart.

    Attributes:
        title: What it shows, for those who cannot see it.
        width_px: Of the whole.
        height_px: Of the whole.
        parts: In the order in which they are drawn.
    """

    title: str
    width_px: float
    height_px: float
    parts: Sequence[Part]


def rectangle(left: float, top: float, right: float, bottom: float) -> Sequence[Point]:
    """Return the corners of a rectangle."""
    return (left, top), (right, top), (right, bottom), (left, bottom)


def below(upper: Drawing, lower: Drawing) -> Drawing:
    """Return one drawing of two, the second under the first."""
    moved = [_moved(part, upper.height_px) for part in lower.parts]
    width_px, height_px = max(upper.width_px, lower.width_px), upper.height_px + lower.height_px
    return Drawing(f"{upper.title}; {lower.title}", width_px, height_px, [*upper.parts, *moved])


def _moved(part: Part, down_px: float) -> Part:
    if isinstance(part, Text):
        return replace(part, at=(part.at[0], part.at[1] + down_px))
    if isinstance(part, Dots):
        return replace(part, centres=[(x, y + down_px) for x, y in part.centres])
    return replace(part, points=[(x, y + down_px) for x, y in part.points])


def text_width_px(text: str) -> float:
    """Return how wide a text may become."""
    return _LETTER_PX * sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def elided(text: str, most: int) -> str:
    """Return a text of at most so many letters: both ends of a longer one."""
    kept = (most - 3) // 2
    return text if len(text) <= most else f"{text[:kept]}...{text[-kept:]}"
