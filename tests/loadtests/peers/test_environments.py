"""Environments of peers, with what calls pip replaced: nothing is fetched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import MachineError
from loadtests.peers.environments import Environment, run_in

ENVIRONMENT = Environment("torch", (("torch==1",), ("numpy==2", "Pillow")), without=("telemetry",))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append([*command])
        if "venv" in command:
            (Path(command[-1]) / "lib" / "python3" / "site-packages").mkdir(parents=True)
        return subprocess.CompletedProcess(command, int("broken" in command), "", "no such package")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_an_environment_is_installed_once_in_steps_and_without_what_must_not_run(
    tmp_path: Path, called: list[list[str]]
) -> None:
    told: list[str] = []
    ENVIRONMENT.install(tmp_path, told.append)
    assert called[0] == [sys.executable, "-m", "venv", str(tmp_path / "torch")]
    assert [command[-1] for command in called[1:]] == ["torch==1", "Pillow", "telemetry"]
    assert all(command[0] == str(tmp_path / "torch" / "bin" / "python") for command in called[1:])
    assert told == ["installing torch: torch==1, numpy==2, Pillow"]
    ENVIRONMENT.install(tmp_path, told.append)
    assert len(called) == 4


def test_other_pins_are_installed_anew(tmp_path: Path, called: list[list[str]]) -> None:
    ENVIRONMENT.install(tmp_path, print)
    Environment("torch", (("torch==2",),)).install(tmp_path, print)
    assert [command[-1] for command in called[4:]] == [str(tmp_path / "torch"), "torch==2"]


def test_one_whose_installation_failed_is_no_environment(tmp_path: Path, called: list[list[str]]) -> None:
    broken = Environment("peer", (("broken",),))
    for _ in range(2):
        with pytest.raises(MachineError, match="peer cannot be installed: no such package"):
            broken.install(tmp_path, print)
    assert len(called) == 4


def test_one_that_sees_ours_finds_our_packages_behind_its_own(tmp_path: Path, called: list[list[str]]) -> None:
    Environment("llama", sees_ours=True).install(tmp_path, print)
    [link] = (tmp_path / "llama").rglob("ours.pth")
    assert str(Path(pytest.__file__).parents[1]) == link.read_text().strip()


def test_one_installed_from_elsewhere_looks_at_the_packages_of_who_runs_it_now(
    tmp_path: Path, called: list[list[str]]
) -> None:
    peer = Environment("llama", sees_ours=True)
    peer.install(tmp_path, print)
    [link] = (tmp_path / "llama").rglob("ours.pth")
    link.write_text("/gone/site-packages\n")
    peer.install(tmp_path, print)
    assert str(Path(pytest.__file__).parents[1]) == link.read_text().strip()


def test_our_own_needs_no_installation(tmp_path: Path, called: list[list[str]]) -> None:
    Environment("").install(tmp_path, print)
    assert called == []
    assert Environment("").python(tmp_path) == sys.executable


def test_what_cannot_be_made_is_told_with_what_was_said() -> None:
    with pytest.raises(MachineError, match=r"a model cannot be made: .*No module named no_such_module"):
        run_in(sys.executable, "no_such_module", [], "a model")
