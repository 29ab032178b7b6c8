"""A drawing as an inline SVG element that takes the page's colours and font."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from pages.drawing import DASH_GAP_PX, DASH_PX, EDGE_PX, HALO_PX, TEXT_PX, Dots, Drawing, Line, Part, Point, Shape, Text


def svg(drawing: Drawing) -> str:
    """Return a drawing as an element of a page of `pages.frame`, whose variables give it its colours."""
    body = "".join(_element(part) for part in drawing.parts)
    return (
        f'<svg viewBox="0 0 {drawing.width_px:g} {drawing.height_px:g}" font-size="{TEXT_PX}" role="img" '
        f'aria-label="{escape(drawing.title)}">{body}</svg>'
    )


def _element(part: Part) -> str:
    if isinstance(part, Line):
        dashes = f' stroke-dasharray="{DASH_PX:g} {DASH_GAP_PX:g}"' if part.is_dashed else ""
        return (
            f'<polyline points="{_points(part.points)}" fill="none" stroke="var(--{part.colour})" '
            f'stroke-width="{part.width_px:g}"{dashes}/>'
        )
    if isinstance(part, Shape):
        opacity = "" if part.opacity == 1 else f' fill-opacity="{part.opacity:g}"'
        edge = f' stroke="var(--{part.edge})" stroke-width="{EDGE_PX:g}"' if part.edge else ""
        return f'<polygon points="{_points(part.points)}" fill="var(--{part.fill})"{opacity}{edge}/>'
    if isinstance(part, Dots):
        return f'<g fill="var(--{part.colour})" fill-opacity="{part.opacity:g}">{_circles(part)}</g>'
    return _text(part)


def _circles(dots: Dots) -> str:
    return "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{dots.radius_px:g}"/>' for x, y in dots.centres)


def _text(part: Text) -> str:
    halo = (
        f' paint-order="stroke" stroke="var(--ground)" stroke-width="{HALO_PX:g}" stroke-linejoin="round"'
        if part.has_halo
        else ""
    )
    anchor = "" if part.anchor == "start" else f' text-anchor="{part.anchor}"'
    x, y = part.at
    return f'<text x="{x:.1f}" y="{y:.1f}"{anchor} fill="var(--{part.colour})"{halo}>{escape(part.text)}</text>'


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
