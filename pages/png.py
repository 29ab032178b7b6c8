"""A drawing as a PNG file on white, for slides and for places that take no SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import pairwise
from math import hypot
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from pages.drawing import DASH_GAP_PX, DASH_PX, EDGE_PX, HALO_PX, TEXT_PX, Dots, Drawing, Line, Part, Point, Shape, Text
from pages.file import write_whole
from pages.palette import LIGHT, Colour

_SCALE = 3
"""Pixels of the file per pixel of the page."""
_FINER = 2
"""Drawn so many times finer and averaged: Pillow's lines have hard edges."""
_MARGIN_PX = 12
"""Of white around it: a file is shown where nobody else leaves any."""
_FONTS = ("DejaVuSans.ttf", "Arial.ttf", "LiberationSans-Regular.ttf")
"""The first that the system has. Pillow's own font, which it always has, knows no letters beyond ASCII."""
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_png(drawing: Drawing, path: Path) -> None:
    """Write a drawing in the light colours.

    Raises:
        OSError: It cannot be written.
    """
    scale = _SCALE * _FINER
    sides_px = (drawing.width_px + 2 * _MARGIN_PX, drawing.height_px + 2 * _MARGIN_PX)
    image = Image.new("RGB", (round(sides_px[0] * scale), round(sides_px[1] * scale)), LIGHT["ground"])
    brush = _Brush(ImageDraw.Draw(image, "RGBA"), scale, _font(TEXT_PX * scale))
    for part in drawing.parts:
        brush.draw(part)
    encoded = BytesIO()
    image.reduce(_FINER).save(encoded, format="PNG")
    write_whole(path, encoded.getvalue())


def _font(size_px: int) -> Font:
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size_px)
        except OSError:
            continue
    return ImageFont.load_default(size_px)


class _Brush:
    """Draws parts on a canvas whose pixels are `scale` times as fine as the page's."""

    def __init__(self, canvas: ImageDraw.ImageDraw, scale: int, font: Font) -> None:
        self._canvas = canvas
        self._scale = scale
        self._font = font

    def draw(self, part: Part) -> None:
        if isinstance(part, Line):
            for points in _dashes(part.points) if part.is_dashed else [part.points]:
                self._line(points, part.colour, part.width_px)
        elif isinstance(part, Shape):
            self._shape(part)
        elif isinstance(part, Dots):
            self._dots(part)
        else:
            self._text(part)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [((x + _MARGIN_PX) * self._scale, (y + _MARGIN_PX) * self._scale) for x, y in points]

    def _line(self, points: Sequence[Point], colour: Colour, width_px: float) -> None:
        self._canvas.line(self._scaled(points), LIGHT[colour], round(width_px * self._scale), joint="curve")

    def _shape(self, part: Shape) -> None:
        self._canvas.polygon(self._scaled(part.points), _rgba(part.fill, part.opacity))
        if part.edge:
            self._line([*part.points, *part.points[:2]], part.edge, EDGE_PX)

    def _dots(self, part: Dots) -> None:
        radius = part.radius_px * self._scale
        for x, y in self._scaled(part.centres):
            self._canvas.ellipse((x - radius, y - radius, x + radius, y + radius), _rgba(part.colour, part.opacity))

    def _text(self, part: Text) -> None:
        halo = round(HALO_PX / 2 * self._scale) if part.has_halo else 0
        self._canvas.text(
            self._scaled([part.at])[0],
            part.text,
            LIGHT[part.colour],
            self._font,
            _ANCHORS[part.anchor],
            stroke_width=halo,
            stroke_fill=LIGHT["ground"],
        )


def _dashes(points: Sequence[Point]) -> Iterator[Sequence[Point]]:
    """Yield the pieces of a dashed line, anew from each of its points."""
    for (x, y), (to_x, to_y) in pairwise(points):
        length = hypot(to_x - x, to_y - y)
        for start in np.arange(0.0, length, DASH_PX + DASH_GAP_PX):
            ends = (share / length for share in (start, min(start + DASH_PX, length)))
            yield [(x + end * (to_x - x), y + end * (to_y - y)) for end in ends]


def _rgba(colour: Colour, opacity: float) -> tuple[int, ...]:
    return (*ImageColor.getrgb(LIGHT[colour])[:3], round(255 * opacity))
