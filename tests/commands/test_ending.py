"""How a call ends that a signal, a full disk or a closed stream meets, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import serving.doctor

ROOT = Path(__file__).resolve().parents[2]
SIGNAL_AT_AN_IMPORT = """
import os, sys

class Sender:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Sender())
sys.argv = ["pocketvlm", *{arguments!r}]
import pocketvlm
pocketvlm.main()
"""


def ended(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, **options)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=["TERM", "HUP", "INT"]
)
def test_a_signal_while_packages_are_loaded_ends_the_process(number: int, code: int) -> None:
    """The handler stands before the first import that takes time, and so ends a container's process 1 too."""
    program = SIGNAL_AT_AN_IMPORT.format(module="typer", number=int(number), arguments=["doctor"])
    done = ended([sys.executable, "-c", program])
    assert (done.returncode, done.stderr) == (code, "")


def test_a_signal_while_a_server_is_loaded_ends_it(smolvlm_bundle: Path) -> None:
    arguments = ["serve", str(smolvlm_bundle), "--port", "0"]
    program = SIGNAL_AT_AN_IMPORT.format(module="uvicorn", number=int(signal.SIGTERM), arguments=arguments)
    done = ended([sys.executable, "-c", program])
    assert (done.returncode, done.stderr) == (143, "")


def test_a_signal_that_the_caller_ignores_is_ignored(clip_bundle: Path) -> None:
    """As under nohup, which outlives its terminal."""
    arguments = ["inspect", str(clip_bundle)]
    program = SIGNAL_AT_AN_IMPORT.format(module="bundle.manifest", number=int(signal.SIGHUP), arguments=arguments)
    done = ended([sys.executable, "-c", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + program])
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")
def test_results_that_find_no_room_are_one_line_and_exit_code_one(clip_bundle: Path) -> None:
    for options in ((), ("--json",)):
        with open("/dev/full", "w", encoding="utf-8") as full:
            command = [sys.executable, "-m", "pocketvlm", "inspect", str(clip_bundle), *options]
            done = subprocess.run(
                command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=600
            )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert "cannot be written: No space left on device" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")
def test_words_that_find_no_room_stop_no_work(smolvlm_bundle: Path) -> None:
    command = [sys.executable, "-m", "pocketvlm", "run", str(smolvlm_bundle), "hi", "--max-tokens", "1"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=full, check=False, timeout=600)
    assert done.returncode == 0
    assert done.stdout.endswith(b"\n")


def test_closed_streams_disturb_nothing(clip_bundle: Path) -> None:
    line = f"exec {sys.executable} -m pocketvlm inspect {clip_bundle} <&- >&- 2>&-"
    assert ended(["sh", "-c", line]).returncode == 0


@pytest.mark.parametrize("lack", [MemoryError(), RuntimeError("can't start new thread")])
def test_lack_of_memory_is_told_as_such(pocketvlm: Callable, monkeypatch: pytest.MonkeyPatch, lack: Exception) -> None:
    def large() -> None:
        raise lack

    monkeypatch.setattr(serving.doctor, "diagnose", large)
    done = pocketvlm("doctor")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is not enough memory")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_subcommands(shell: str) -> None:
    variables = {"_POCKETVLM_COMPLETE": f"complete_{shell}", "COMP_WORDS": "pocketvlm insp", "COMP_CWORD": "1"}
    variables |= {"_TYPER_COMPLETE_ARGS": "pocketvlm insp", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = ended([sys.executable, "-m", "pocketvlm"], env={**os.environ, **variables})
    assert "inspect" in done.stdout
    assert "export" not in done.stdout


def test_the_version_is_the_package_s(pocketvlm: Callable) -> None:
    from importlib.metadata import version

    done = pocketvlm("--version")
    assert (done.returncode, done.stdout) == (0, f"pocketvlm {version('pocketvlm')}\n")
