import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from bundle.errors import MachineError
from serving.process import run_process, running_server


def test_a_server_answers_inside_the_block_and_is_gone_after_it(clip_bundle: Path, tmp_path: Path) -> None:
    with (
        running_server("serve", [str(clip_bundle)], tmp_path / "log") as server,
        urlopen(f"{server.url}/health/ready", timeout=5) as response,
    ):
        assert response.status == 200
    with pytest.raises(OSError, match="refused"):
        urlopen(f"{server.url}/health/ready", timeout=5)


def test_a_server_that_cannot_start_is_an_error_naming_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(MachineError, match="log"), running_server("serve", [str(tmp_path / "absent")], log):
        pass
    assert "is not a bundle" in log.read_text()


CLEANING = """
import pathlib, signal, sys, time

def end(number, frame):
    raise SystemExit

signal.signal(signal.SIGTERM, end)
left = pathlib.Path(sys.argv[1])
left.write_text("half")
try:
    time.sleep(60)
finally:
    time.sleep(0.3)
    left.unlink()
"""
WAITING = """
import signal, sys
from serving.process import run_process

def end(number, frame):
    raise SystemExit(143)

signal.signal(signal.SIGTERM, end)
run_process([sys.executable, *sys.argv[1:]])
"""


def test_a_command_that_is_run_cleans_up_before_its_caller_ends(tmp_path: Path) -> None:
    left = tmp_path / "left"
    command = [sys.executable, "-c", WAITING, "-c", CLEANING, str(left)]
    with subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2]) as process:
        while not left.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    assert not left.exists()


def test_a_command_s_exit_code_is_returned() -> None:
    assert run_process([sys.executable, "-c", "raise SystemExit(3)"]) == 3
