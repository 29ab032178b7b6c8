"""Charts are well-formed, keep their marks inside, and stay small."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.charts import HEIGHT_PX, WIDTH_PX, distribution_chart, time_chart

milliseconds = st.floats(0, 1e7)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(milliseconds, min_size=1, max_size=30))
def test_a_distribution_rises_from_nothing_to_all_within_the_frame(values: list[float]) -> None:
    line = ElementTree.fromstring(distribution_chart(values)).find("polyline")
    assert line is not None
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert points[-1][1] == pytest.approx(10.0)  # the top of the plot: 100 %
    assert all(0 <= x <= WIDTH_PX and 0 <= y <= HEIGHT_PX for x, y in points)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.floats(0, 1e4), milliseconds), min_size=1, max_size=30), st.floats(0, 10))
def test_every_measurement_is_a_dot_within_the_frame(points: list[tuple[float, float]], warmup_s: float) -> None:
    root = ElementTree.fromstring(time_chart(points, end_s=1e4, warmup_s=warmup_s))
    dots = root.findall(".//circle")
    assert len(dots) == len(points)
    assert all(0 <= float(dot.attrib["cx"]) <= WIDTH_PX and 0 <= float(dot.attrib["cy"]) <= HEIGHT_PX for dot in dots)


def test_a_million_measurements_make_no_bigger_chart_than_a_few_thousand() -> None:
    few, many = ([(i * 1e-3, float(i % 97)) for i in range(count)] for count in (5_000, 100_000))
    assert len(time_chart(many, 100.0, 0.0)) < 1.1 * len(time_chart(few, 5.0, 0.0))
    assert len(distribution_chart([ms for _, ms in many])) < 1.1 * len(distribution_chart([ms for _, ms in few]))


def test_ticks_are_round_numbers() -> None:
    texts = re.findall(r">([\d.,]+)</text>", time_chart([(0.0, 7.3), (93.0, 430.0)], end_s=93.0, warmup_s=0.0))
    assert texts == ["0", "100", "200", "300", "400", "500", "0", "20", "40", "60", "80", "100"]


def test_a_chart_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        distribution_chart([])
