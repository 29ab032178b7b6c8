"""A system behind its pipe: what it answers, what it says when it fails, and that it ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bundle.errors import MachineError
from loadtests.peers.measures import Measure
from loadtests.peers.process import PeerProcess
from loadtests.peers.worker import run

PREFILL, CHATS = Measure("prefill-8", "prefill", 8), Measure("chats-2", "chats", 2)
SYSTEM = """
import os, time
from loadtests.peers.worker import serve

def prefill(measure):
    print("libraries print on standard output")
    return (lambda: time.sleep(0.02 * measure.size)), 4

def chats(measure):
    raise ValueError("no server\\nsecond line")

def decode(measure):
    os._exit(3)

serve(lambda: {"prefill": prefill, "chats": chats, "decode": decode}, ("numpy",))
"""


def opened(code: str, folder: Path) -> PeerProcess:
    return PeerProcess("fake", [sys.executable, "-c", code], 1, folder / "fake.log")


def test_a_system_answers_with_milliseconds_of_one_step(tmp_path: Path) -> None:
    with opened(SYSTEM, tmp_path) as system:
        assert system.kinds == {"prefill", "chats", "decode"}
        assert system.versions.keys() == {"numpy"}
        assert system.run(PREFILL) >= 0.02 * 8 / 4 * 1e3
    assert "libraries print" in (tmp_path / "fake.log").read_text()


def test_what_fails_is_told_in_a_line_and_the_system_goes_on(tmp_path: Path) -> None:
    with opened(SYSTEM, tmp_path) as system:
        with pytest.raises(MachineError, match=r"fake: ValueError: no server; see .*fake\.log"):
            system.run(CHATS)
        assert system.run(PREFILL) > 0


def test_a_system_that_dies_is_told_with_its_code_now_and_later(tmp_path: Path) -> None:
    with opened(SYSTEM, tmp_path) as system:
        with pytest.raises(MachineError, match="ended with code 3"):
            system.run(Measure("decode-1", "decode", 1, 4))
        with pytest.raises(MachineError, match="ended with code 3"):
            system.run(PREFILL)


def test_a_system_that_cannot_be_opened_is_told_with_its_reason(tmp_path: Path) -> None:
    code = "from loadtests.peers.worker import serve\nserve(lambda: 1 / 0, ())"
    with pytest.raises(MachineError, match="ZeroDivisionError: division by zero"):
        opened(code, tmp_path)


def test_a_run_that_counts_its_items_is_stretched_to_those_of_the_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 of 128 tokens in 0.5 s are as slow as 128 in 2 s."""
    clock = iter([10.0, 10.5])
    monkeypatch.setattr("loadtests.peers.worker.time.perf_counter", lambda: next(clock))
    assert run({"chats": lambda measure: ((lambda: 32), 1)}, CHATS) == pytest.approx(2000)
