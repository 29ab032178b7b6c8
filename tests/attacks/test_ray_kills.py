"""Processes of a Ray cluster of two nodes are ended or stopped in the middle of load: what becomes of the requests.

Clients use both nodes' proxies as a load balancer does, which asks each for its health. What a proxy held when it was
hit, and was sent before that was noticed, goes with it: nothing is left that could answer. Nothing else may be lost or
hang.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
from damage import Record
from ray_cluster import MODEL
from wire import CHAT, Reply, ask

pytestmark = pytest.mark.attack

NUM_CLIENTS = 8
WORDS = 15  # of an answer of about a second
WARM_UP_S = 4.0
WATCHED_S = 25.0
"""After the fault: longer than the slowest recovery that is allowed."""
REQUEST_TIMEOUT_S = 45.0
PROBE_S = 0.5
MAX_RECOVERY_S = 20.0
"""Twice the 10 s that an idle machine is held to: two cores run a dozen of Ray's processes, and what else there is."""
START_TIMEOUT_S = 400.0
WHOLE_TIMEOUT_S = 240.0
"""Until a lost process has its successor, which is no part of the judgement: a start takes a busy machine a minute."""
CONTROLLER, PROXY = "ray::ServeController", "ray::ProxyActor"
INGRESS, REPLICA = "ray::ServeReplica:pocketvlm:ingress", f"ray::ServeReplica:pocketvlm:generator-{MODEL}"


@dataclass(frozen=True)
class Sample:
    """One request of the load.

    Attributes:
        sent_s: Monotonic.
        port: Of the proxy that took it.
        reply: How it ended.
    """

    sent_s: float
    port: int
    reply: Reply


@dataclass
class Nodes:
    """The cluster under attack.

    Attributes:
        process: The script that started it.
        ports: Of the head's proxy, then of the other node's.
        raylets: Their processes, likewise.
    """

    process: subprocess.Popen[str]
    ports: tuple[int, int]
    raylets: list[int]

    def find(self, title: str, raylet: int | None = None) -> list[int]:
        """Return the processes with a word in their title among those that we started, or that a raylet did."""
        parents = _parents()
        return [pid for pid in sorted(_below(raylet or self.process.pid, parents)) if title in _title(pid)]

    def is_whole(self) -> bool:
        """Whether two of everything serve again, by both proxies."""
        if [len(self.find(title)) for title in (CONTROLLER, PROXY, INGRESS, REPLICA)] != [1, 2, 2, 2]:
            return False
        gauge = f'pocketvlm:num_replicas{{model_name="{MODEL}"}} 2.0'
        return all(b"200" in _get(port, "/health/ready")[:15] for port in self.ports) and all(
            gauge.encode() in _get(port, "/metrics") for port in self.ports
        )

    def replace_node(self) -> None:
        """Add a node in the place of the second."""
        _pipe(self.process.stdin).write("add\n")
        _pipe(self.process.stdin).flush()
        self.raylets[1:] = json.loads(_line(self.process))["raylets"]


class Load:
    """Clients that ask one request after another, streamed and whole in turn, and keep how each ended.

    Attributes:
        samples: In the order of their ends.
        open_ports: Of the proxies that were well when they were asked last.
    """

    def __init__(self, ports: tuple[int, int]) -> None:
        self.samples: list[Sample] = []
        self.open_ports = ports
        self._ports = ports
        self._is_over = threading.Event()
        self._clients = [
            threading.Thread(target=self._ask_on, args=(index,), daemon=True) for index in range(NUM_CLIENTS)
        ]
        for client in (*self._clients, threading.Thread(target=self._watch, daemon=True)):
            client.start()

    def stop(self) -> list[Sample]:
        """Let the requests under way end, and return all."""
        self._is_over.set()
        for client in self._clients:
            client.join()
        return sorted(self.samples, key=lambda sample: sample.sent_s)

    def _ask_on(self, index: int) -> None:
        messages = [{"role": "user", "content": "a " * WORDS}]
        while not self._is_over.is_set():
            index += 1
            ports = self.open_ports or self._ports
            port = ports[index % len(ports)]
            sent_s = time.monotonic()
            body = {"model": MODEL, "messages": messages, "stream": index // 2 % 2 == 0}
            self.samples.append(Sample(sent_s, port, ask(port, CHAT, body, REQUEST_TIMEOUT_S)))

    def _watch(self) -> None:
        while not self._is_over.wait(PROBE_S):
            self.open_ports = tuple(port for port in self._ports if b" 200 " in _get(port, "/-/healthz", 2)[:15])


@dataclass(frozen=True)
class Outcome:
    """What a fault did.

    Attributes:
        endings: Of requests that did not go by a proxy that was hit.
        with_proxy: Of requests that were under way in a proxy that was hit.
        refusals: What they were told.
        recovery_s: From the fault until requests sent are answered again, all of them.
        slowest_s: The longest that an answer took.
    """

    fault: str
    endings: dict[str, int]
    with_proxy: dict[str, int]
    refusals: dict[str, int]
    recovery_s: float
    slowest_s: float

    def __str__(self) -> str:
        told = "  ".join(f"{name} {self.endings.get(name, 0):3d}" for name in ("answered", "refused", "lost", "hung"))
        return f"{self.fault:28s} {told}  in the hit proxy {self.with_proxy}  recovery {self.recovery_s:.1f} s" + (
            f"  slowest answer {self.slowest_s:.1f} s  {self.refusals or ''}"
        )


def outcome_of(fault: str, samples: list[Sample], hit_s: float, hit_ports: tuple[int, ...]) -> Outcome:
    """Judge a load during which a fault came."""
    is_within = [each.port in hit_ports and each.reply.ending in ("lost", "hung") for each in samples]
    failed_s = [each.sent_s - hit_s for each in samples if each.reply.ending != "answered"]
    answered = [each.reply.seconds for each in samples if each.reply.ending == "answered"]
    return Outcome(
        fault,
        dict(Counter(each.reply.ending for each, within in zip(samples, is_within, strict=True) if not within)),
        dict(Counter(each.reply.ending for each, within in zip(samples, is_within, strict=True) if within)),
        dict(Counter(_told(each.reply) for each in samples if each.reply.ending == "refused")),
        max(0.0, *failed_s, 0.0),
        max(answered, default=0.0),
    )


def _told(reply: Reply) -> str:
    return reply.body.rpartition(b'"message"')[2][:90].decode(errors="replace")


OUTCOMES: list[Outcome] = []


@dataclass(frozen=True)
class Fault:
    """What is done to which process.

    Attributes:
        name: In the table.
        find: Returns the process.
        number: Of the signal.
        hits_port: Which proxy goes with it; None for none.
        after: What an operator would do then.
    """

    name: str
    find: Callable[[Nodes], int]
    number: signal.Signals
    hits_port: int | None = None
    after: Callable[[Nodes], None] = field(default=lambda nodes: None)


def one(title: str, node: int | None = None) -> Callable[[Nodes], int]:
    return lambda nodes: nodes.find(title, None if node is None else nodes.raylets[node])[0]


FAULTS = [
    Fault("replica killed", one(REPLICA), signal.SIGKILL),
    Fault("replica stopped", one(REPLICA), signal.SIGSTOP),
    Fault("ingress killed", one(INGRESS), signal.SIGKILL),
    Fault("ingress stopped", one(INGRESS), signal.SIGSTOP),
    Fault("controller killed", one(CONTROLLER), signal.SIGKILL),
    Fault("controller stopped", one(CONTROLLER), signal.SIGSTOP),
    Fault("proxy killed", one(PROXY, 0), signal.SIGKILL, 0),
    Fault("proxy stopped", one(PROXY, 0), signal.SIGSTOP, 0),
    Fault("node killed", lambda nodes: nodes.raylets[1], signal.SIGKILL, 1, Nodes.replace_node),
]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes, each with a proxy, an ingress and a replica; ended with all that they started."""
    ports = (_free_port(), _free_port())
    script = Path(__file__).with_name("ray_cluster.py")
    log = tmp_path_factory.mktemp("cluster") / "log"
    # Ray's sockets need a short path.
    folder = f"/tmp/pocketvlm-kills-{os.getpid()}"
    command = [sys.executable, str(script), *map(str, ports), folder]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=script.parents[2]
        )
    try:
        with _deadline(process, START_TIMEOUT_S):
            line = _line(process)
        assert line, log.read_text()[-2000:]
        nodes = Nodes(process, ports, json.loads(line)["raylets"])
        _wait_until(nodes.is_whole, 60)
        yield nodes
    finally:
        _end(process)
        for outcome in OUTCOMES:
            print(outcome)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_no_request_is_lost_with_a_process(nodes: Nodes, fault: Fault, record: Record) -> None:
    with record.attack(f"ray: {fault.name}") as attack:
        load = Load(nodes.ports)
        try:
            time.sleep(WARM_UP_S)
            pid, hit_s = fault.find(nodes), time.monotonic()
            os.kill(pid, fault.number)
            time.sleep(WATCHED_S)
        finally:
            samples = load.stop()
        hit_ports = () if fault.hits_port is None else (nodes.ports[fault.hits_port],)
        outcome = outcome_of(fault.name, samples, hit_s, hit_ports)
        OUTCOMES.append(outcome)
        print(outcome)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        fault.after(nodes)
        _wait_until(nodes.is_whole, WHOLE_TIMEOUT_S)
        attack.came(*(each.reply for each in samples if each.port not in hit_ports))
        attack.must(sum(outcome.with_proxy.values()) <= 2 * NUM_CLIENTS, f"{outcome.with_proxy} lost with the proxy")
        attack.must(outcome.recovery_s <= MAX_RECOVERY_S, f"requests failed for {outcome.recovery_s:.1f} s")


def _line(process: subprocess.Popen[str]) -> str:
    """Return the script's line among Ray's."""
    return next((line for line in _pipe(process.stdout) if line.startswith("{")), "")


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[str], timeout_s: float) -> Iterator[None]:
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(process: subprocess.Popen[str]) -> None:
    ours = _below(process.pid, _parents())
    for pid in ours:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    _pipe(process.stdin).close()
    with _deadline(process, 60):
        process.wait()
    _pipe(process.stdout).close()
    for pid in ours & set(_parents()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _parents() -> dict[int, int]:
    """Return the parent of each process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    return parents


def _below(root: int, parents: dict[int, int]) -> set[int]:
    """Return a process and its descendants."""
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _wait_until(holds: Callable[[], bool], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "the cluster did not become whole again"
        time.sleep(0.5)


def _get(port: int, path: str, timeout_s: float = 5) -> bytes:
    """Return the bytes of an answer; none where there is none."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return b""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
