"""A box that a reply names, beside the right one: right where they overlap by half (Everingham et al. 2010)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quant.evaluation.sample import Sample

LEAST_OVERLAP = 0.5
"""Intersection over union, from which on a box is right: the threshold of Pascal VOC (section 4.2)."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def box(reply: str, sample: Sample) -> float:
    """Return 1 where the first four numbers of a reply are a box that overlaps a right one enough, else 0.

    Corners are left, top, right, bottom, in whatever unit the file and the model share.
    """
    said = _corners(reply)
    rights = [_corners(answer) for answer in sample.answers]
    return float(said is not None and any(right and overlap(said, right) >= LEAST_OVERLAP for right in rights))


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return what two boxes share over what they cover together, 0 where neither covers anything."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    together = _area(a) + _area(b) - shared
    return shared / together if together > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _corners(text: str) -> tuple[float, ...] | None:
    numbers = [float(number) for number in _NUMBER.findall(text)[:4]]
    return tuple(numbers) if len(numbers) == 4 else None
