"""Charts hold every measurement where its figures say, keep their marks inside, and stay small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.charts import distribution_chart, time_chart
from pages.drawing import Dots, Drawing, Line, Text
from pages.svg import svg

milliseconds = st.floats(0, 1e7)


def steps_of(drawing: Drawing) -> list[tuple[float, float]]:
    (line,) = [part for part in drawing.parts if isinstance(part, Line) and part.colour == "series-0"]
    return list(line.points)


def dots_of(drawing: Drawing) -> list[tuple[float, float]]:
    (dots,) = [part for part in drawing.parts if isinstance(part, Dots)]
    return list(dots.centres)


def is_inside(drawing: Drawing, points: list[tuple[float, float]]) -> bool:
    return all(0 <= x <= drawing.width_px and 0 <= y <= drawing.height_px for x, y in points)


@given(st.lists(milliseconds, min_size=1, max_size=30))
def test_a_distribution_rises_from_nothing_to_all_within_the_frame(values_ms: list[float]) -> None:
    drawing = distribution_chart("chat", values_ms)
    points = steps_of(drawing)
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    heights = {text.text: text.at[1] for text in drawing.parts if isinstance(text, Text) and text.anchor == "end"}
    assert points[-1][1] - points[0][1] == pytest.approx(heights["100"] - heights["0"])  # from 0 to 100 %
    assert is_inside(drawing, points)


def test_the_median_and_the_95th_percentile_are_told() -> None:
    drawing = distribution_chart("chat", [*range(1, 101)])
    told = [part for part in drawing.parts if isinstance(part, Text) and part.has_halo]
    assert [text.text for text in told] == ["p50 50.5", "p95 95"]
    # p95 lies near the right edge, so that its name stands on the left of its line.
    assert [text.anchor for text in told] == ["start", "end"]


@given(st.lists(st.tuples(st.floats(0, 1e4), milliseconds), min_size=1, max_size=30), st.floats(0, 10))
def test_every_measurement_is_a_dot_within_the_frame(points: list[tuple[float, float]], warmup_s: float) -> None:
    drawing = time_chart("chat", points, end_s=1e4, warmup_s=warmup_s)
    assert len(dots_of(drawing)) == len(points)
    assert is_inside(drawing, dots_of(drawing))


def test_a_dot_stands_at_its_second_and_its_milliseconds() -> None:
    drawing = time_chart("chat", [(0.0, 0.0), (25.0, 300.0), (100.0, 400.0)], end_s=100.0, warmup_s=0.0)
    (left, bottom), (x, y), (right, top) = dots_of(drawing)
    assert (x - left) / (right - left) == pytest.approx(0.25)
    assert (y - bottom) / (top - bottom) == pytest.approx(0.75)


def test_a_million_measurements_make_no_bigger_chart_than_a_few_thousand() -> None:
    few, many = ([(i * 1e-3, float(i % 97)) for i in range(count)] for count in (5_000, 100_000))
    assert len(svg(time_chart("", many, 100.0, 0.0))) < 1.1 * len(svg(time_chart("", few, 5.0, 0.0)))
    spread_of_few, spread_of_many = (distribution_chart("", [ms for _, ms in points]) for points in (few, many))
    assert len(svg(spread_of_many)) < 1.1 * len(svg(spread_of_few))


def test_thinning_keeps_the_first_and_the_last_measurement() -> None:
    points = [(float(at), float(at)) for at in range(10_000)]
    found = np.array(dots_of(time_chart("", points, 9_999.0, 0.0)))
    whole = np.array(dots_of(time_chart("", [points[0], points[-1]], 9_999.0, 0.0)))
    np.testing.assert_allclose(found[[0, -1]], whole)


def test_a_chart_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        distribution_chart("chat", [])
