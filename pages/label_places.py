"""Where the names of points go so that they cover nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pages.drawing import TEXT_PX, Point, text_width_px

_DISTANCES_PX = (10.0, 18.0, 30.0, 44.0)


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

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.bottom - self.top)


def place_labels(labels: Sequence[str], marks: Sequence[Box], lines: Sequence[Box], inside: Box) -> list[Box]:
    """Return a box for each label: the nearest place to its mark that covers least.

    Args:
        labels: One line each.
        marks: Of the points, in the same order.
        lines: What else should stay free.
        inside: The plot, which a label does not leave.
    """
    places: list[Box] = []
    for label, mark in zip(labels, marks, strict=True):
        taken = [*marks, *lines, *places]
        places.append(min(_candidates(label, mark), key=lambda box: _cost(box, mark, taken, inside)))
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


def _cost(box: Box, mark: Box, taken: Sequence[Box], inside: Box) -> tuple[float, float]:
    covered = sum(box.overlap(other) for other in taken) + 4 * (box.area - box.overlap(inside))
    return round(covered, 1), box.distance(mark)
