"""Outlines of the points of charts, so that series are told apart by shape as well as by colour."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin
from typing import TypeAlias

from pages.drawing import Point, Shape
from pages.palette import Colour

Outline: TypeAlias = Sequence[Point]
"""Corners about (0, 0), of about the same size to the eye."""


def _regular(corners: int, turned: float = 0.0, radius: float = 1.0) -> Outline:
    """Return a regular outline whose first corner points up, turned clockwise by a share of a whole turn."""
    angles = [2 * pi * (at / corners + turned) for at in range(corners)]
    return [(radius * sin(angle), -radius * cos(angle)) for angle in angles]


def _plus(turned: float) -> Outline:
    arm = 0.36
    corners = [(-arm, -1.1), (arm, -1.1), (arm, -arm), (1.1, -arm), (1.1, arm), (arm, arm)]
    whole = [*corners, *((-x, -y) for x, y in corners)]
    angle = 2 * pi * turned
    return [(x * cos(angle) - y * sin(angle), x * sin(angle) + y * cos(angle)) for x, y in whole]


CIRCLE = _regular(32)
SQUARE = _regular(4, turned=1 / 8, radius=1.25)
STAR = [point for pair in zip(_regular(5, radius=1.4), _regular(5, 1 / 10, 0.58), strict=True) for point in pair]
OUTLINES: tuple[Outline, ...] = (
    CIRCLE,
    SQUARE,
    _regular(3, radius=1.3),
    _regular(4, radius=1.25),
    _regular(3, turned=1 / 2, radius=1.3),
    _plus(0.0),
    _plus(1 / 8),
    _regular(3, turned=-1 / 4, radius=1.3),
    _regular(3, turned=1 / 4, radius=1.3),
    _regular(5, radius=1.15),
)
"""In the order in which they are given to what is compared; `STAR` and no other stands for the reference."""
LOZENGE: Outline = [(0.0, -1.5), (0.75, 0.0), (0.0, 1.5), (-0.75, 0.0)]
"""Of what is not ours."""


def mark(outline: Outline, at: Point, colour: Colour, *, is_filled: bool = True, radius_px: float = 4.5) -> Shape:
    """Return a point of a chart."""
    corners = [(at[0] + radius_px * x, at[1] + radius_px * y) for x, y in outline]
    return Shape(corners, colour if is_filled else "ground", colour)
