"""Medians, ratios and verdicts against figures worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from bundle.machine import Machine
from loadtests.peers.measures import MEASURES, Measure
from loadtests.peers.results import WANTED, Comparison, cells_of, markdown, print_comparison, verdicts_of

DECODE, CHATS = Measure("decode-8", "decode", 8, 512), Measure("chats-8", "chats", 8)
OURS = frozenset({"own-slow", "own-fast"})
READINGS = {
    DECODE: {
        "own-slow": [60.0, 60.0, 60.0],
        "own-fast": [20.0, 40.0, 20.0],
        "peer-slow": [90.0, 90.0, 90.0],
        "peer-fast": [30.0, 80.0, 40.0],
    },
    CHATS: {"own-slow": [2000.0, 1000.0, 2000.0]},
}
MACHINE = Machine("a processor", 2, None, None, "Linux", {})


def compared(readings: Any = READINGS) -> Comparison:
    told = {"own-fast": {"pocketvlm": "0.1.0"}}
    cells, verdicts = cells_of(readings, OURS), verdicts_of(readings, OURS)
    return Comparison(cells, verdicts, {"genai": "pip failed"}, told, 2, 3, MACHINE, "2026-11-27")


def test_speed_is_the_ratio_to_the_peer_of_least_median_within_each_turn() -> None:
    cell = compared().cell("decode-8", "own-fast")
    assert cell is not None
    assert (cell.ms.median, cell.per_second) == (20, 400)
    assert cell.speed is not None
    assert cell.speed.median == pytest.approx(2.0)  # of 1.5, 2 and 2
    assert compared().cell("decode-8", "peer-fast").speed.median == 1  # type: ignore[union-attr]


def test_what_no_peer_does_has_a_rate_and_no_ratio() -> None:
    cell = compared().cell("chats-8", "own-slow")
    assert cell is not None
    assert (cell.per_second, cell.speed) == (256, None)
    assert [verdict.measure for verdict in compared().verdicts] == ["decode-8"]


@pytest.mark.parametrize(("factor", "is_met"), [(1.0, True), (0.7, False)])
def test_a_verdict_holds_our_fastest_to_what_was_wanted(factor: float, is_met: bool) -> None:
    peers = {name: [factor * ms for ms in times] for name, times in READINGS[DECODE].items() if name not in OURS}
    (verdict,) = verdicts_of({DECODE: {**READINGS[DECODE], **peers}}, OURS)
    assert (verdict.ours, verdict.peer, verdict.wanted) == ("own-fast", "peer-fast", 1.5)
    assert verdict.speed.median == pytest.approx(2 * factor)
    assert verdict.is_met is is_met


def test_the_markdown_has_a_row_per_system_and_a_dash_where_nothing_was_measured() -> None:
    told = markdown(compared())
    rows = [line for line in told.splitlines() if line.startswith("| own-fast |")]
    assert rows == ["| own-fast | 20 (20-30), 400/s, x 2.00 | - |"]
    assert "| decode-8 | own-fast | peer-fast | 2.00 (1.75-2.00) | 1.5 | met |" in told
    assert "genai is absent, or in part: pip failed" in told


def test_text_and_json_hold_the_same_figures() -> None:
    console = Console(record=True, width=200)
    print_comparison(compared(), console)
    assert "20 (20-30)" in console.export_text()
    told = json.loads(json.dumps(compared().to_json()))
    assert told["verdicts"][0]["is_met"] is True
    assert told["threads"] == 2


def test_something_is_wanted_of_every_measure() -> None:
    assert WANTED.keys() == {measure.name for measure in MEASURES}
