from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pages.label_places import Box, place_labels

PLOT = Box(0, 0, 400, 300)


def test_overlap_is_the_common_area() -> None:
    assert Box(0, 0, 4, 4).overlap(Box(2, 1, 10, 3)) == 4
    assert Box(0, 0, 4, 4).overlap(Box(4, 0, 8, 4)) == 0


def test_distance_is_0_where_boxes_touch() -> None:
    assert Box(0, 0, 4, 4).distance(Box(4, 1, 8, 3)) == 0
    assert Box(0, 0, 4, 4).distance(Box(7, 8, 9, 9)) == pytest.approx(5)


def test_a_lone_label_stands_close_to_its_mark_on_the_right() -> None:
    mark = Box.around(100, 100, 7)
    (place,) = place_labels(["int4"], [mark], [], PLOT)
    assert place.left > mark.right
    assert place.distance(mark) < 5


def test_a_label_at_the_right_edge_goes_to_the_left() -> None:
    mark = Box.around(395, 100, 7)
    (place,) = place_labels(["int8-static"], [mark], [], PLOT)
    assert place.right < mark.left


def test_labels_of_near_points_cover_neither_marks_nor_each_other() -> None:
    marks = [Box.around(60 + 12 * at, 200, 7) for at in range(5)]
    places = place_labels(["int4", "int4-hqq", "int4-gptq", "int4-awq", "nf4"], marks, [], PLOT)
    assert all(one.overlap(other) == 0 for one, other in combinations(places, 2))
    assert all(place.overlap(mark) == 0 for place in places for mark in marks)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300)), min_size=1, max_size=6))
def test_a_label_leaves_the_plot_by_no_more_than_it_must(points: list[tuple[float, float]]) -> None:
    marks = [Box.around(*point, 7) for point in points]
    places = place_labels(["ab"] * len(points), marks, [], PLOT)
    assert all(place.overlap(PLOT) >= 0.4 * place.area for place in places)


def test_a_line_crosses_a_box_where_it_passes_through() -> None:
    box = Box(10, 10, 20, 20)
    assert box.is_crossed((0, 0), (30, 30))
    assert box.is_crossed((15, 0), (15, 30))
    assert box.is_crossed((0, 15), (15, 15))
    assert not box.is_crossed((0, 15), (9, 15))  # ends before it
    assert not box.is_crossed((0, 0), (30, 5))
    assert not box.is_crossed((5, 0), (5, 30))


def test_a_label_far_from_its_mark_is_not_led_across_another_one() -> None:
    # a wall to the left and to the right leaves places above and below; above, the way leads across a mark
    mark = Box.around(200, 150, 7)
    walls = [Box(0, 110, 190, 190), Box(210, 110, 400, 190), Box.around(200, 130, 7), Box(150, 165, 250, 178)]
    (place, *_) = place_labels(["int4"], [mark], walls, PLOT)
    crossed = [wall for wall in walls if wall.is_crossed(mark.centre, place.nearest(mark.centre))]
    assert len(crossed) <= 1
    assert not any(place.overlap(wall) for wall in walls)
