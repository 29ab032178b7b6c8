from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pages.drawing import Text, text_width_px
from pages.marks import CIRCLE
from pages.plot import WIDTH_PX, Axis, Entry, Plot

ROWS = Axis.of_rows(["first", "second", "third"])


def names(axis: Axis) -> list[str]:
    return [name for _, name in axis.ticks]


def test_ticks_are_round_numbers() -> None:
    assert names(Axis.from_zero("ms", 430.0)) == ["0", "100", "200", "300", "400", "500"]
    assert names(Axis.from_zero("s", 93.0)) == ["0", "20", "40", "60", "80", "100"]
    assert names(Axis.between("", -0.3, 0.35)) == ["-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3"]
    assert names(Axis.between("", 0, 3_500_000)) == [f"{at * 500_000:,}" for at in range(8)]


@given(st.floats(0, 1e12))
def test_an_axis_from_zero_holds_the_largest_value_with_few_ticks(largest: float) -> None:
    axis = Axis.from_zero("", largest)
    assert axis.end >= largest * (1 - 1e-9)
    assert 2 <= len(axis.ticks) <= 9
    assert [axis.ticks[0][0], axis.ticks[-1][0]] == pytest.approx([axis.start, axis.end])


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_between_two_values_stay_between_them_at_equal_steps(start: float, span: float) -> None:
    axis = Axis.between("", start, start + span)
    values = [value for value, _ in axis.ticks]
    slack = 1e-6 * span + 1e-9 * abs(start)
    assert all(start - slack <= value <= start + span + slack for value in values)
    assert 1 <= len(values) <= 9
    steps = np.diff(values)
    assert steps == pytest.approx(np.full(len(steps), steps.mean() if len(steps) else 0), rel=1e-4)


def test_values_beyond_an_axis_lie_at_its_ends() -> None:
    axis = Axis.between("", 2, 4)
    assert [axis.share(value) for value in (0, 2, 3, 4, 9)] == [0, 0, 0.5, 1, 1]


def test_the_first_row_is_the_topmost_and_rows_are_evenly_high() -> None:
    plot = Plot(Axis.between("", 0, 1), ROWS, height_px=90)
    heights = [plot.at(0, row)[1] for row in range(3)]
    assert heights == pytest.approx([plot.top_px + 15, plot.top_px + 45, plot.top_px + 75])


def test_values_grow_to_the_right_and_upwards() -> None:
    plot = Plot(Axis.between("x", 0, 10), Axis.between("y", 0, 10), height_px=100)
    assert plot.at(0, 0) == (plot.left_px, plot.bottom_px)
    assert plot.at(10, 10) == (plot.right_px, plot.top_px)


@example(["x" * 200])
@given(st.lists(st.text("abcdefgh.-_ ", min_size=1, max_size=60), min_size=1, max_size=9))
def test_texts_stay_within_the_drawing_however_long_names_are(rows: list[str]) -> None:
    plot = Plot(Axis.between("x", 0, 10), Axis.of_rows(rows), height_px=20 * len(rows))
    assert plot.left_px < 0.6 * WIDTH_PX
    drawing = plot.drawing("", [])
    for text in (part for part in drawing.parts if isinstance(part, Text)):
        width_px = text_width_px(text.text)
        left = text.at[0] - width_px * {"start": 0, "middle": 0.5, "end": 1}[text.anchor]
        assert left >= 0
        assert left + width_px <= WIDTH_PX + 1
        assert 0 <= text.at[1] <= drawing.height_px


def test_a_legend_takes_as_many_lines_as_it_needs_and_leaves_none_to_the_plot() -> None:
    entries = tuple(Entry(f"a variant number {at}", "series-0", CIRCLE) for at in range(5))
    entries += (Entry("x" * 200, "series-1", CIRCLE),)
    plot = Plot(Axis.between("", 0, 1), ROWS, 90, legend=entries)
    texts = [part for part in plot.drawing("", []).parts if isinstance(part, Text) and part.colour == "ink"]
    lines = {text.at[1] for text in texts}
    assert len(lines) == 4  # two to a line, and one that is too long for company
    assert max(lines) < plot.top_px
    assert all(text.at[0] + text_width_px(text.text) <= WIDTH_PX for text in texts)


def test_equal_lengths_of_a_logarithmic_axis_are_equal_ratios() -> None:
    axis = Axis.logarithmic("", 0.01, 1.0)
    assert [axis.share(value) for value in (0.01, 0.1, 1.0)] == pytest.approx([0, 0.5, 1])
    assert axis.share(0.2) - axis.share(0.1) == pytest.approx(axis.share(0.04) - axis.share(0.02))
    assert [axis.share(value) for value in (0.0, 0.001, 5.0)] == [0, 0, 1]


def test_a_logarithmic_axis_names_parts_of_a_power_where_it_is_short() -> None:
    assert names(Axis.logarithmic("", 0.015, 0.6)) == ["0.02", "0.05", "0.1", "0.2", "0.5"]
    assert names(Axis.logarithmic("", 1e-5, 2.0)) == ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]


@given(st.floats(1e-6, 10), st.floats(1.5, 1e6))
def test_ticks_of_a_logarithmic_axis_lie_on_it_and_are_few(start: float, ratio: float) -> None:
    axis = Axis.logarithmic("", start, start * ratio)
    values = [value for value, _ in axis.ticks]
    assert all(start * (1 - 1e-6) <= value <= start * ratio * (1 + 1e-6) for value in values)
    assert len(values) <= 10
    assert values or ratio < 2.5  # between 2 and 5 of a power may lie none
