"""Energy of a span is interpolated between readings, and unknown where they do not hold it."""

from __future__ import annotations

import pytest

from loadtests.energy import Point, ServerEnergy, joules_between, joules_told

POINTS = (Point(100.0, 5.0), Point(101.0, 15.0), Point(103.0, 55.0))


def test_all_meters_of_a_page_are_added_up() -> None:
    page = """# TYPE pocketvlm:energy_joules_total counter
pocketvlm:energy_joules_total{covers="processor",meter="RAPL package-0"} 12.5
pocketvlm:energy_joules_total{covers="gpu",meter="NVML Orin"} 1e+01
pocketvlm:energy_joules_created{covers="gpu",meter="NVML Orin"} 1.7e+09
"""
    assert joules_told(page) == 22.5
    assert joules_told("pocketvlm:energy_meters 0.0\n") is None


def test_a_span_is_interpolated() -> None:
    assert joules_between(POINTS, 100.5, 102.0) == pytest.approx(35.0 - 10.0)
    assert joules_between(POINTS, 100.0, 103.0) == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("points", "start_s", "end_s"),
    [((), 100.0, 101.0), (POINTS, 99.0, 101.0), (POINTS, 101.0, 104.0), ((*POINTS, Point(104.0, 0.0)), 100.0, 103.0)],
)
def test_what_the_readings_do_not_hold_is_not_known(points: tuple[Point, ...], start_s: float, end_s: float) -> None:
    assert joules_between(points, start_s, end_s) is None


def test_a_server_without_a_meter_is_asked_once() -> None:
    with ServerEnergy("http://127.0.0.1:9") as energy:  # nothing listens: no readings, and no error either
        pass
    assert energy.points == ()
