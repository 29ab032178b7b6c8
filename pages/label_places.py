"""Where the names of points go so that they cover nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pages.drawing import TEXT_PX, Point, Text, text_width_px

FAR_PX = 12.0
"""From its mark, and a label is led to it by a line."""
_DISTANCES_PX = (10.0, 18.0, 30.0, 44.0, 60.0, 80.0)
_MOST_SWEEPS = 8


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y down."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, radius: float) -> Box:
        """Return the square of twice the radius about a point."""
        return cls(x - radius, y - radius, x + radius, y + radius)

    @classmethod
    def along(cls, start: Point, end: Point) -> Box:
        """Return what a straight line covers."""
        (left, right), (top, bottom) = (sorted(ends) for ends in zip(start, end, strict=True))
        return cls(left - 1, top - 1, right + 1, bottom + 1)

    @classmethod
    def of_text(cls, text: Text) -> Box:
        """Return what a text covers."""
        width = text_width_px(text.text)
        left = text.at[0] - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[text.anchor]
        return cls(left, text.at[1] - TEXT_PX, left + width, text.at[1])

    @property
    def centre(self) -> Point:
        """The middle."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def overlap(self, other: Box) -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def distance(self, other: Box) -> float:
        """Return how far apart two boxes lie, 0 where they touch."""
        across = max(other.left - self.right, self.left - other.right, 0.0)
        along = max(other.top - self.bottom, self.top - other.bottom, 0.0)
        return float((across**2 + along**2) ** 0.5)

    def nearest(self, point: Point) -> Point:
        """Return the point of the rectangle that lies nearest to another one."""
        x, y = point
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)

    def is_crossed(self, start: Point, end: Point) -> bool:
        """Say whether a straight line passes through (Liang and Barsky, 1984)."""
        first, last = 0.0, 1.0
        for at, low, high in ((0, self.left, self.right), (1, self.top, self.bottom)):
            step = end[at] - start[at]
            if step == 0:
                if not low < start[at] < high:
                    return False
                continue
            near, far = sorted(((low - start[at]) / step, (high - start[at]) / step))
            first, last = max(first, near), min(last, far)
        return first < last

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.bottom - self.top)


def place_labels(labels: Sequence[str], marks: Sequence[Box], lines: Sequence[Box], inside: Box) -> list[Box]:
    """Return a box for each label: where it covers least, then where its leading line crosses least, then the nearest.

    Each is placed in turn, and then again among all the others, until none moves.

    Args:
        labels: One line each.
        marks: Of the points, in the same order.
        lines: What else should stay free.
        inside: The plot, which a label does not leave.
    """
    options = [list(_candidates(label, mark)) for label, mark in zip(labels, marks, strict=True)]
    places: list[Box] = []
    for at, mark in enumerate(marks):
        places.append(_best(options[at], mark, marks, [*lines, *places], inside))
    for _ in range(_MOST_SWEEPS):
        before = list(places)
        for at, mark in enumerate(marks):
            others = [*lines, *places[:at], *places[at + 1 :]]
            places[at] = _best(options[at], mark, marks, others, inside)
        if places == before:
            break
    return places


def _candidates(label: str, mark: Box) -> Iterator[Box]:
    width = text_width_px(label)
    x, y = mark.centre
    for distance in _DISTANCES_PX:
        for down in (0.0, -1.0, 1.0):
            middle = y + down * distance
            for left in (x + distance, x - distance - width, x - width / 2):
                if down or left != x - width / 2:
                    yield Box(left, middle - TEXT_PX / 2, left + width, middle + TEXT_PX / 2)


def _best(options: Sequence[Box], mark: Box, marks: Sequence[Box], others: Sequence[Box], inside: Box) -> Box:
    return min(options, key=lambda box: _cost(box, mark, marks, others, inside))


def _cost(box: Box, mark: Box, marks: Sequence[Box], others: Sequence[Box], inside: Box) -> tuple[float, int, float]:
    """Return what a place covers, then what its leading line crosses, then how far it is."""
    distance = box.distance(mark)
    covered = sum(box.overlap(other) for other in (*marks, *others)) + 4 * (box.area - box.overlap(inside))
    crossed = 0
    if distance > FAR_PX:
        leader = mark.centre, box.nearest(mark.centre)
        crossed = sum(other.is_crossed(*leader) for other in (*marks, *others) if other is not mark)
    return round(covered, 1), crossed, distance
