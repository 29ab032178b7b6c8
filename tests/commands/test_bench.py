"""What `pocketvlm bench` says of itself; what it measures is held in tests/loadtests."""

from __future__ import annotations


def test_the_help_shows_the_batch_sizes_that_are_measured_where_none_is_named(pocketvlm) -> None:
    shown = " ".join(pocketvlm("bench", "--help").stdout.replace("│", " ").split())
    assert "Sequences or images; may be repeated. [default: 1, 8]" in shown
