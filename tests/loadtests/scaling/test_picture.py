"""The picture of a run, from samples that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from loadtests.samples import RequestSample
from loadtests.scaling.picture import Replicas, percentiles, scaling_picture
from loadtests.scaling.steps import parse_steps
from pages.drawing import Line, Text
from pages.png import write_png

SAMPLES = [RequestSample("chat", at / 10, 500.0, ttft_ms=float(at)) for at in range(300)]


def test_each_second_tells_of_the_requests_that_began_in_the_window_before() -> None:
    points = dict(percentiles(SAMPLES, 40))
    assert points[10.0] == pytest.approx(94.05)  # of 0 ... 99
    assert points[20.0] == pytest.approx(194.05)
    assert max(points) == 39.0  # behind it, fewer than three are left


def test_requests_that_failed_and_windows_with_few_tell_nothing() -> None:
    failed = [RequestSample("chat", 1.0, 5.0, ttft_ms=9.0, error="503")] * 5
    assert percentiles([*failed, *SAMPLES[:2]], 5) == []


def test_users_replicas_and_latencies_are_three_lines_over_one_time(tmp_path: Path) -> None:
    replicas = [Replicas(0.0, 1), Replicas(12.0, 3), Replicas(35.0, 1)]
    drawing = scaling_picture(parse_steps("1x10,6x20"), replicas, SAMPLES, 40.0)
    curves = [part for part in drawing.parts if isinstance(part, Line) and part.colour.startswith("series")]
    users, counts, _ = curves
    assert (len(users.points), len(counts.points)) == (6, 6)
    assert len({y for _, y in counts.points}) == 2
    assert max(y for _, y in curves[0].points) < min(y for _, y in curves[2].points)  # the second lies below the first
    assert {"users", "replicas"} <= {part.text for part in drawing.parts if isinstance(part, Text)}
    write_png(drawing, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.height > image.width / 2
