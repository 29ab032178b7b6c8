"""A server as a process of its own: started, waited for until it is ready, and stopped."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle.errors import MachineError

READY_TIMEOUT_S = 180.0
"""Ray starts several processes before the first model loads."""
_STOP_TIMEOUT_S = 60.0
"""Longer than `drain_timeout_s`: running requests may end."""
_CLEANING_TIMEOUT_S = 10.0
"""For a command that was told to end to remove what it had half written."""
_POLL_S = 0.1


@dataclass(frozen=True)
class ServerProcess:
    """A running server.

    Attributes:
        url: Where it listens, on this machine alone.
        pid: Of the process that was started.
    """

    url: str
    pid: int


@contextmanager
def running_server(
    command: Literal["serve", "deploy"], arguments: Sequence[str], log: Path, *, keep: bool = False
) -> Iterator[ServerProcess]:
    """Run `pocketvlm serve` or `deploy` on a free port of the loopback until the block is left.

    Args:
        command: One process, or Ray Serve.
        arguments: Bundles and flags, the port aside.
        log: Gets what the server prints.
        keep: Leave it running, in a session of its own, where the block ends well.

    Raises:
        MachineError: It ended, or was not ready in time.
    """
    port = _free_port()
    line = [sys.executable, "-m", "pocketvlm", command, *arguments, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, start_new_session=keep)
    is_kept = False
    try:
        server = ServerProcess(f"http://127.0.0.1:{port}", process.pid)
        _wait_until_ready(process, server.url, log)
        yield server
        is_kept = keep
    finally:
        if not is_kept:
            _stop(process)


def run_process(command: Sequence[str]) -> int:
    """Run a command to its end and return its exit code; it ends before this process does, and cleans up.

    Ctrl-C reaches it from the terminal as it reaches this process; any other end of this process is told to it.
    """
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except BaseException as end:
        if isinstance(end, KeyboardInterrupt):
            with suppress(subprocess.TimeoutExpired):
                process.wait(_CLEANING_TIMEOUT_S)
        _stop(process, _CLEANING_TIMEOUT_S)
        raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise MachineError(f"the server ended with exit code {process.returncode}; what it said is in {log}")
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    raise MachineError(f"the server was not ready within {READY_TIMEOUT_S:.0f} s; what it said is in {log}")


def _stop(process: subprocess.Popen[bytes], timeout_s: float = _STOP_TIMEOUT_S) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
