"""A process beside the attack that asks /health/live all the time, and weighs the server's memory.

It is a process of its own, so that the attackers' work in theirs is not taken for the server's silence. How late it
wakes from its own short sleeps says what the machine's other work costs everybody.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass

from victim import descendants, forget_peak, memory_bytes, peak_bytes, resident_bytes

INTERVAL_S = 0.02
_WEIGH_EVERY_S = 0.1
_TIMEOUT_S = 120.0
"""Of one probe: longer than any silence that was ever measured."""
_REQUEST = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Probed:
    """What the probes told.

    Attributes:
        silence_s: Longest time from a probe's start to the next answer.
        lateness_s: How late the prober itself woke, at worst: no fault of the server.
        num_probes: Answered or not.
        num_red: Answers other than 200.
        growth_mb: Peak memory of the server and its processes, less what it was at the start.
    """

    silence_s: float
    lateness_s: float
    num_probes: int
    num_red: int
    growth_mb: float


class Prober:
    """Probes a server from construction to `stop`."""

    def __init__(self, port: int, pid: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(port), str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it probes

    def stop(self) -> Probed:
        """Return what it saw."""
        out, _ = self._process.communicate("", timeout=30)
        return Probed(**json.loads(out))


class _Watch:
    """The probing side: one thread asks, one weighs, the main one waits to be told to stop."""

    def __init__(self, port: int, pid: int) -> None:
        self._port, self._pid = port, pid
        self._silent_since_s: float | None = None
        self._silence_s = self._lateness_s = 0.0
        self._num_probes = self._num_red = 0
        forget_peak(pid)
        self._start_bytes = self._peak_bytes = self._weight()
        self._resident_bytes = resident_bytes(pid)

    def ask_for_ever(self) -> None:
        """Probe; a probe that fails goes on being a silence until one is answered."""
        while True:
            self._silent_since_s = self._silent_since_s or time.monotonic()
            self._num_probes += 1
            status = _ask(self._port)
            if status:
                self._num_red += status != b"200"
                self._silence_s = max(self._silence_s, time.monotonic() - self._silent_since_s)
                self._silent_since_s = None
            asleep_s = time.monotonic()
            time.sleep(INTERVAL_S)
            self._lateness_s = max(self._lateness_s, time.monotonic() - asleep_s - INTERVAL_S)

    def weigh_for_ever(self) -> None:
        """Keep the largest weight."""
        while True:
            self._peak_bytes = max(self._peak_bytes, self._weight())
            time.sleep(_WEIGH_EVERY_S)

    def result(self) -> Probed:
        """Return what was seen until now, a probe that still waits included."""
        since_s = self._silent_since_s
        silence_s = max(self._silence_s, time.monotonic() - since_s if since_s else 0.0)
        # A sample sees all processes and may miss the moment; what the kernel keeps does not, of the server alone.
        sampled, kept = self._peak_bytes - self._start_bytes, peak_bytes(self._pid) - self._resident_bytes
        growth_mb = max(sampled, kept, 0) / 1e6
        return Probed(silence_s, self._lateness_s, self._num_probes, self._num_red, growth_mb)

    def _weight(self) -> int:
        return sum(map(memory_bytes, [self._pid, *descendants(self._pid)]))


def _ask(port: int) -> bytes:
    """Return the status of /health/live, empty where no answer came."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as connection:
        connection.sendall(_REQUEST)
        return connection.recv(4096)[9:12]
    return b""


def _main(port: int, pid: int) -> None:
    watch = _Watch(port, pid)
    for work in (watch.ask_for_ever, watch.weigh_for_ever):
        threading.Thread(target=work, daemon=True).start()
    print("probing", flush=True)
    sys.stdin.read()
    print(json.dumps(asdict(watch.result())), flush=True)


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
