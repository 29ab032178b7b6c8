"""What `pocketvlm bench` says of itself; what it measures is held in tests/loadtests."""

from __future__ import annotations

from loadtests.latency import BenchmarkPlan


def test_the_help_shows_the_batch_sizes_that_are_measured_where_none_is_named(pocketvlm) -> None:
    shown = " ".join(pocketvlm("bench", "--help").stdout.replace("│", " ").split())
    assert "Default: 1 and 8." in shown
    assert BenchmarkPlan().batch_sizes == (1, 8)
