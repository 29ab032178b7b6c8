from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bundle.directory import read_manifest
from bundle.errors import BundleFormatError, MachineError
from loadtests.apart import run_apart

WAITING = """
import signal, sys, time
from loadtests.apart import run_apart

def end(number, frame):
    raise SystemExit(143)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    print("begun", flush=True)
    run_apart(time.sleep, 600)
"""


def test_what_a_function_returns_or_raises_comes_back() -> None:
    assert run_apart(operator.add, 1, 2) == 3
    assert run_apart(os.getpid) != os.getpid()
    with pytest.raises(BundleFormatError, match="is not a bundle"):
        run_apart(read_manifest, Path("nowhere"))


def test_a_process_that_dies_is_told_with_its_code() -> None:
    with pytest.raises(MachineError, match="ended with code 9"):
        run_apart(os._exit, 9)


def test_the_process_ends_with_the_one_that_waits_for_it(tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        children = wait_for_children(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(30) == 143
        finally:
            process.kill()
    assert children
    deadline_s = time.monotonic() + 10
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline_s


def wait_for_children(pid: int) -> list[int]:
    """The processes of `multiprocessing.spawn`; its resource tracker ends a moment after them."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if len(found) == 2:
            return [int(child) for child in found]
        time.sleep(0.05)
    return []


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
