from __future__ import annotations

import re
from xml.etree import ElementTree

from pages.drawing import Dots, Drawing, Line, Shape, Text
from pages.palette import LIGHT
from pages.svg import svg

DRAWING = Drawing(
    'a "title" & <b>',
    100,
    50,
    [
        Line([(0, 0), (10, 20.04)], "soft", 1.5),
        Shape([(1, 1), (2, 1), (2, 2)], "series-1", "ink", 0.5),
        Shape([(1, 1), (2, 1), (2, 2)], "line"),
        Dots([(3, 4), (5, 6)], "series-0", 2, 0.25),
        Text((7, 8), "<script> & 'more'", "middle", has_halo=True),
        Text((7, 8), "plain"),
    ],
)


def test_every_part_is_drawn_where_it_says_in_the_pages_colours() -> None:
    root = ElementTree.fromstring(svg(DRAWING))
    assert (root.attrib["viewBox"], root.attrib["aria-label"]) == ("0 0 100 50", 'a "title" & <b>')
    line, shape, plain, dots, text, bare = root
    assert (line.attrib["points"], line.attrib["stroke"], line.attrib["fill"]) == (
        "0.0,0.0 10.0,20.0",
        "var(--soft)",
        "none",
    )
    assert (shape.attrib["fill"], shape.attrib["stroke"]) == ("var(--series-1)", "var(--ink)")
    assert (shape.attrib["fill-opacity"], "stroke" in plain.attrib, "fill-opacity" in plain.attrib) == (
        "0.5",
        False,
        False,
    )
    assert [(dot.attrib["cx"], dot.attrib["cy"]) for dot in dots] == [("3.0", "4.0"), ("5.0", "6.0")]
    assert dots.attrib["fill"] == "var(--series-0)"
    assert (text.text, text.attrib["text-anchor"], text.attrib["stroke"]) == (
        "<script> & 'more'",
        "middle",
        "var(--ground)",
    )
    assert "stroke" not in bare.attrib


def test_dashed_lines_and_no_others_have_dashes() -> None:
    whole, dashed = ElementTree.fromstring(
        svg(Drawing("", 9, 9, [Line([(0, 0), (9, 9)], "ink"), Line([(0, 0), (9, 9)], "ink", is_dashed=True)]))
    )
    assert "stroke-dasharray" not in whole.attrib
    assert dashed.attrib["stroke-dasharray"] == "5 4"


def test_every_colour_is_a_variable_of_the_page_and_no_address_is_in_it() -> None:
    element = svg(DRAWING)
    assert set(re.findall(r"var\(--([\w-]+)\)", element)) <= LIGHT.keys()
    assert not re.search(r"#[0-9a-f]{3,6}|https?:|url\(", element)
