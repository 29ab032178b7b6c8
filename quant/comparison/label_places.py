"""Where the names of points go so that they cover nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LETTER_PX, _HEIGHT_PX = 6.6, 12.0
"""Of the charts' font at 11 px, on the wide side."""
_DISTANCES_PX = (10.0, 18.0, 30.0, 44.0)


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, x: float, y: float, radius: float) -> Box:
        """Return the square of twice the radius about a point."""
        return cls(x - radius, y - radius, x + radius, y + radius)

    @property
    def centre(self) -> tuple[float, float]:
        """The middle."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def overlap(self, other: Box) -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def distance(self, other: Box) -> float:
        """Return how far apart two boxes lie, 0 where they touch."""
        across = max(other.left - self.right, self.left - other.right, 0.0)
        along = max(other.bottom - self.top, self.bottom - other.top, 0.0)
        return float((across**2 + along**2) ** 0.5)

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.top - self.bottom)


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
    width = _LETTER_PX * len(label)
    x, y = mark.centre
    for distance in _DISTANCES_PX:
        for up in (0.0, 1.0, -1.0):
            middle = y + up * distance
            for left in (x + distance, x - distance - width, x - width / 2):
                if up or left != x - width / 2:
                    yield Box(left, middle - _HEIGHT_PX / 2, left + width, middle + _HEIGHT_PX / 2)


def _cost(box: Box, mark: Box, taken: Sequence[Box], inside: Box) -> tuple[float, float]:
    covered = sum(box.overlap(other) for other in taken) + 4 * (box.area - box.overlap(inside))
    return round(covered, 1), box.distance(mark)
