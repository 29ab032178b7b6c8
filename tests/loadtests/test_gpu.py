"""The GPU benchmark, rehearsed without a GPU: what fails, hangs or is cut loses its own section and no other."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from loadtests.gpu import __main__ as command
from loadtests.gpu.found import RESULTS, Found, facts, read_found, tell
from loadtests.gpu.sizes import TINY


def seconds_by_default() -> float:
    return sum(command.SECTIONS[name].limit_s for name in command._BY_DEFAULT)


def test_a_section_that_fails_is_told_in_the_table_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--provider", "cpu", "--tiny", "--sections", "decode-int8", "--budget-s", "200"]
    assert command.main([str(tmp_path), *options]) == 0  # its bundle was never made
    told = capsys.readouterr().out
    assert "decode-int8: code 1: error: " in told
    assert (tmp_path / "decode-int8.log").is_file()


def test_the_budget_is_under_eight_minutes_and_sections_beyond_it_are_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget_s = command._parser().parse_args([str(tmp_path)]).budget_s
    assert budget_s + command._STOP_TIMEOUT_S < 8 * 60 < seconds_by_default()  # hence the budget
    limits: list[float] = []
    monkeypatch.setattr(command, "_run_apart", lambda folder, name, options, limit_s: limits.append(limit_s) or "")
    command.run_sections(tmp_path, ["make-fp16", "decode-fp16"], [], 60.0)
    assert max(limits) <= 60
    limits.clear()
    command.run_sections(tmp_path, ["where", "eager"], [], 0.5)
    assert limits == []
    assert [each for each in facts(read_found(tmp_path)) if "not begun: the budget" in each]


class Stuck:
    """A process that no signal ends, as one that waits for a driver."""

    pid = 4_000_000

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait(self, timeout: float) -> int:
        raise subprocess.TimeoutExpired("stuck", timeout)


def test_a_process_that_cannot_be_ended_is_told_and_the_next_section_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.subprocess, "Popen", Stuck)
    monkeypatch.setattr(command.os, "killpg", lambda pid, signal: None)
    command.run_sections(tmp_path, ["where", "eager"], [], 60.0)
    told = list(facts(read_found(tmp_path)))
    assert [line.split(":")[0] for line in told] == ["where", "eager"]
    assert all("waits in the kernel still" in line for line in told)


def test_a_line_that_was_cut_costs_no_other(tmp_path: Path) -> None:
    tell(tmp_path, Found("decode", "fp16", 1.3))
    with (tmp_path / RESULTS).open("a") as lines:
        lines.write('{"what": "pre')
    tell(tmp_path, Found("prefill", "fp16", 3.0))
    assert [each.what for each in read_found(tmp_path)] == ["decode", "prefill"]


def test_figures_are_shown_where_the_run_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(folder: Path, *_: Any) -> None:
        tell(folder, Found("decode step, batch 1", "fp16", 1.25))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_sections", ended)
    assert command.main([str(tmp_path), "--provider", "cpu"]) == 0
    assert capsys.readouterr().out.count("decode step, batch 1") == 2  # as it came, and in the table


def test_every_section_has_sizes_for_a_rehearsal() -> None:
    assert {name for name in command.SECTIONS if name.endswith("-cpu")} == {"make-cpu", "engine-cpu"}
    assert TINY != command.FULL
