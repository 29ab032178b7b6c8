"""A server of our own, on the loopback, that attacks are tried on: started, measured, stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
START_TIMEOUT_S = 90.0
"""A machine whose cores are shared imports and loads for tens of seconds."""
_POLL_S = 0.05
_MB = 1e6


@dataclass(frozen=True)
class Figures:
    """What the kernel counts of a server and the processes that it started.

    Attributes:
        memory_mb: Of the server itself: proportional set size, which counts pages that processes share once.
        helpers_mb: Of the processes that it started.
        descriptors: Open in the server itself.
        threads: Of the server itself.
        processes: The server and its descendants.
    """

    memory_mb: float
    helpers_mb: float
    descriptors: int
    threads: int
    processes: int


@dataclass
class Victim:
    """A running server.

    Attributes:
        process: As started.
        port: On the loopback.
        log: Gets what it prints.
        chat_model: Served id that answers chats.
        embedding_model: Served id that embeds and classifies; empty where none is served.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    chat_model: str = "long"
    embedding_model: str = "clip-int8"
    started_s: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        """Of the server."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def get(self, path: str, timeout_s: float = 10.0) -> tuple[int, bytes]:
        """Return status and body of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def status(self, path: str, timeout_s: float = 10.0) -> int:
        """Return the status of a GET; 0 where no answer came."""
        try:
            return self.get(path, timeout_s)[0]
        except (OSError, http.client.HTTPException):
            return 0

    def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> float | None:
        """Return after how many seconds something came to hold; None where it did not in time."""
        started_s = time.monotonic()
        while not holds():
            if time.monotonic() - started_s > timeout_s:
                return None
            time.sleep(_POLL_S)
        return time.monotonic() - started_s

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when it can be asked.

        Raises:
            RuntimeError: It ended, or was not ready in time.
        """
        ready_s = self.wait_until(lambda: not self.is_running or self.status("/health/ready", 2) == 200, timeout_s)
        if ready_s is None or not self.is_running:
            raise RuntimeError(f"the server is not ready (exit code {self.process.poll()}): {self.tail()}")

    def tail(self, characters: int = 2000) -> str:
        """Return the last that it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def gauge(self, name: str) -> float:
        """Return the sum of a metric over its labels; 0 where there is none."""
        lines = self.get("/metrics")[1].decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"pocketvlm:{name}"))

    def is_idle(self) -> bool:
        """Whether no request runs or waits."""
        return self.gauge("num_requests_running") + self.gauge("num_requests_waiting") == 0

    def figures(self) -> Figures:
        """Return what the kernel counts now."""
        helpers = descendants(self.pid)
        memory_mb, helpers_mb = memory_bytes(self.pid) / _MB, sum(map(memory_bytes, helpers)) / _MB
        descriptors, threads = (len(os.listdir(f"/proc/{self.pid}/{kind}")) for kind in ("fd", "task"))
        return Figures(memory_mb, helpers_mb, descriptors, threads, 1 + len(helpers))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server alone."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it and what it started, at once."""
        left = descendants(self.pid) if self.is_running else []
        self.process.kill()
        self.process.wait()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that these started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def memory_bytes(pid: int) -> int:
    """Return a process's proportional set size; 0 where it is gone."""
    return _kernel_bytes(pid, "smaps_rollup", "Pss:")


def resident_bytes(pid: int) -> int:
    """Return a process's resident set, pages that it shares included; 0 where it is gone."""
    return _kernel_bytes(pid, "status", "VmRSS:")


def peak_bytes(pid: int) -> int:
    """Return the largest resident set that a process ever had, as the kernel kept it; 0 where it is gone."""
    return _kernel_bytes(pid, "status", "VmHWM:")


def _kernel_bytes(pid: int, file: str, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


def forget_peak(pid: int) -> None:
    """Let `peak_bytes` begin anew (proc(5): 5 in clear_refs)."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_command(bundles: Sequence[Path], program: str = "") -> list[str]:
    """Return `pocketvlm serve` of bundles, or a program of this folder that takes the same arguments."""
    start = [str(HERE / program)] if program else ["-m", "pocketvlm"]
    return [sys.executable, *start, "serve", *map(str, bundles)]


@contextlib.contextmanager
def running_victim(
    command: Sequence[str],
    log: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    limits: Mapping[int, int] | None = None,
    is_awaited: bool = True,
    **models: str,
) -> Iterator[Victim]:
    """Run a server until the block is left; then end it, however it fares.

    Args:
        command: Without the port.
        log: Written.
        settings: By dotted path, given as environment variables.
        limits: Of resources: `resource.RLIMIT_*` -> value.
        is_awaited: Wait until it is ready.
        models: Fields of `Victim`.
    """
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment_of(settings or {})}

    def restrict() -> None:
        for limit, value in (limits or {}).items():
            resource.setrlimit(limit, (value, value))

    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=restrict,
        )
    victim = Victim(process, port, log, **models)
    try:
        if is_awaited:
            victim.wait_until_ready()
        yield victim
    finally:
        victim.kill()


def environment_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables of settings by dotted path."""
    return {f"POCKETVLM_{path.upper().replace('.', '__')}": str(value) for path, value in settings.items()}


def known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings that this server has; a suite that is older or newer than the server tries what it can."""
    from serving.settings import ServerSettings

    fields = json.loads(ServerSettings().model_dump_json())

    def has(path: str) -> bool:
        table: Any = fields
        for name in path.split("."):
            if not isinstance(table, dict) or name not in table:
                return False
            table = table[name]
        return True

    return {path: value for path, value in settings.items() if has(path)}
