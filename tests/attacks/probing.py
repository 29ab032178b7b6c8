"""A process beside the attack that asks /health/live all the time, and weighs the server's memory.

It is a process of its own, so that the attackers' work in theirs is not taken for the server's silence. It asks a twin
as well, a server that nobody attacks: what that one's answers cost in the same seconds is the machine's doing.
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
from pathlib import Path

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
        own_silence_s: The same without what the event loop's thread waited for a core in that time: the server's doing.
        twin_silence_s: The same of the twin; 0 where there is none.
        num_probes: Answered or not.
        num_red: Answers other than 200.
        growth_mb: Peak memory of the server and its processes, less what it was at the start.
    """

    silence_s: float
    own_silence_s: float
    twin_silence_s: float
    num_probes: int
    num_red: int
    growth_mb: float


class Prober:
    """Probes a server from construction to `stop`.

    Args:
        port: Of the server.
        pid: Of the server.
        twin_port: Of a server that nobody attacks; 0 where there is none.
    """

    def __init__(self, port: int, pid: int, twin_port: int = 0) -> None:
        line = [sys.executable, __file__, str(port), str(pid), str(twin_port)]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it probes

    def stop(self) -> Probed:
        """Return what it saw."""
        out, _ = self._process.communicate("", timeout=30)
        return Probed(**json.loads(out))


class _Asker:
    """Asks one server all the time; a probe that fails goes on being a silence until one is answered."""

    def __init__(self, port: int, pid: int = 0) -> None:
        self._port, self._pid = port, pid
        self._since: tuple[float, float] | None = None
        self._silence_s = self._own_silence_s = 0.0
        self.num_probes = self.num_red = 0

    def ask_for_ever(self) -> None:
        """Probe."""
        while True:
            self._since = self._since or (time.monotonic(), waited_s(self._pid))
            self.num_probes += 1
            status = _ask(self._port)
            if status:
                self.num_red += status != b"200"
                self._silence_s, self._own_silence_s = self.silences_s
                self._since = None
            time.sleep(INTERVAL_S)

    @property
    def silences_s(self) -> tuple[float, float]:
        """The longest silence, and the longest of its own, those of a probe which still waits included."""
        since = self._since  # the thread that probes may take it away between two looks
        if since is None:
            return self._silence_s, self._own_silence_s
        silence_s = time.monotonic() - since[0]
        own_s = silence_s - (waited_s(self._pid) - since[1])
        return max(self._silence_s, silence_s), max(self._own_silence_s, own_s)


def waited_s(pid: int) -> float:
    """Return how long a process's first thread was ready to run and had no core, in all; 0 where it is gone.

    Linux, Documentation/scheduler/sched-stats.rst: the second number of schedstat, nanoseconds.
    """
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


class _Scales:
    """Weighs a server and its processes all the time."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        forget_peak(pid)
        self._start_bytes = self._peak_bytes = self._weight()
        self._resident_bytes = resident_bytes(pid)

    def weigh_for_ever(self) -> None:
        """Keep the largest weight."""
        while True:
            self._peak_bytes = max(self._peak_bytes, self._weight())
            time.sleep(_WEIGH_EVERY_S)

    @property
    def growth_mb(self) -> float:
        """The peak, less what it was at the start."""
        # A sample sees all processes and may miss the moment; what the kernel keeps does not, of the server alone.
        sampled, kept = self._peak_bytes - self._start_bytes, peak_bytes(self._pid) - self._resident_bytes
        return max(sampled, kept, 0) / 1e6

    def _weight(self) -> int:
        return sum(map(memory_bytes, [self._pid, *descendants(self._pid)]))


def _ask(port: int) -> bytes:
    """Return the status of /health/live, empty where no answer came."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as connection:
        connection.sendall(_REQUEST)
        return connection.recv(4096)[9:12]
    return b""


def _main(port: int, pid: int, twin_port: int) -> None:
    asker, twin, scales = _Asker(port, pid), _Asker(twin_port), _Scales(pid)
    for work in (asker.ask_for_ever, scales.weigh_for_ever, *([twin.ask_for_ever] if twin_port else ())):
        threading.Thread(target=work, daemon=True).start()
    print("probing", flush=True)
    sys.stdin.read()
    probed = Probed(*asker.silences_s, twin.silences_s[0], asker.num_probes, asker.num_red, scales.growth_mb)
    print(json.dumps(asdict(probed)), flush=True)


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
