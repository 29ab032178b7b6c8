"""The clients of a soak beside Locust's: some ask rightly, leave, read slowly or send nonsense; one breaks things."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fuzzing import Inputs
from payloads import chat, image_part, jpeg_of_many_scans, large_png, long_chat, small_png, text_part
from victim import Victim
from wire import CHAT, CLASSIFY, EMBEDDINGS, Reply, ask, connect, exchange, read_reply, request_bytes, reset

ASK_TIMEOUT_S = 60.0
_FAULTS = ("raise decoder", "memory decoder", "raise vision", "memory vision", "raise sampler", "hang decoder")
_FAULT_S = 0.5
_FAULT_EVERY_S = 12.0


class Crowd:
    """Threads that ask until they are told to stop.

    Args:
        victim: Asked.
        fault_file: That switches faults on; see faulty_server.py.
        seed: Of what they send.
    """

    def __init__(self, victim: Victim, fault_file: Path, seed: int = 7) -> None:
        self._victim, self._fault_file, self._seed = victim, fault_file, seed
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self.endings: dict[str, Counter[str]] = {}
        self.lost: list[str] = []
        self.num_faults = 0
        clients = (self._asker, self._leaver, self._slow_reader, self._vandal, self._heavy, self._breaker)
        self._threads = [threading.Thread(target=self._repeat, args=(each,), daemon=True) for each in clients]

    def start(self) -> None:
        """Let them come."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each end what it has begun."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * ASK_TIMEOUT_S)
        self._fault_file.write_text("")

    def _repeat(self, client: Callable[[random.Random, int], None]) -> None:
        rng, turn = random.Random(f"{self._seed} {client.__name__}"), 0
        while not self._is_over.is_set():
            turn += 1
            client(rng, turn)

    def _count(self, client: str, reply: Reply, request: bytes = b"") -> None:
        with self._lock:
            self.endings.setdefault(client, Counter())[reply.ending] += 1
            if reply.ending in ("lost", "hung"):
                self.lost.append(f"{client}: {reply} to {request[-200:]!r}")

    def _ask(self, client: str, path: str, body: dict[str, object]) -> None:
        self._count(client, ask(self._victim.port, path, body, ASK_TIMEOUT_S))

    def _asker(self, rng: random.Random, turn: int) -> None:
        """Ask rightly, of every kind."""
        model, other, picture = self._victim.chat_model, self._victim.embedding_model, image_part(small_png(turn))
        kind = rng.randrange(4)
        if kind == 0:
            self._ask("asks", CHAT, chat(model, [picture, text_part("What is this?")], stream=bool(turn % 2)))
        elif kind == 1:
            self._ask("asks", CHAT, long_chat(model, turn, 60, stream=bool(turn % 2)))
        elif kind == 2:
            self._ask("asks", EMBEDDINGS, {"model": other, "input": [f"a red circle {turn}", picture]})
        else:
            self._ask(
                "asks", CLASSIFY, {"model": other, "images": [picture], "labels": [f"{turn} {n}" for n in range(9)]}
            )

    def _leaver(self, rng: random.Random, turn: int) -> None:
        """Leave in the middle: nobody is there to be answered."""
        with contextlib.suppress(OSError):
            connection = connect(self._victim.port)
            body = long_chat(self._victim.chat_model, turn, 500, stream=bool(turn % 2))
            request = request_bytes(CHAT, body)
            connection.sendall(request[: rng.randrange(1, len(request))] if turn % 4 == 0 else request)
            time.sleep(rng.random())
            reset(connection)

    def _slow_reader(self, rng: random.Random, turn: int) -> None:
        """Read a stream in sips, to its end."""
        started_s, pieces = time.monotonic(), []
        request = request_bytes(CHAT, long_chat(self._victim.chat_model, turn, 40, stream=True))
        is_closed = False
        with contextlib.suppress(OSError), connect(self._victim.port, 2048) as connection:
            connection.sendall(request)
            connection.settimeout(ASK_TIMEOUT_S)
            while piece := connection.recv(512):
                pieces.append(piece)
                time.sleep(0.02)
            is_closed = True
        self._count("reads slowly", read_reply(b"".join(pieces), is_closed, time.monotonic() - started_s), request)

    def _vandal(self, rng: random.Random, turn: int) -> None:
        """Send what the fuzzer draws."""
        inputs = Inputs(self._seed + turn, self._victim.chat_model, self._victim.embedding_model)
        for _ in range(20):
            request = request_bytes(*inputs.next())
            self._count("sends nonsense", exchange(self._victim.port, request, ASK_TIMEOUT_S), request)
        self._is_over.wait(0.5)

    def _heavy(self, rng: random.Random, turn: int) -> None:
        """Send what is dear to decode."""
        data, kind = (jpeg_of_many_scans(50, 3000), "jpeg") if turn % 2 else (large_png(turn), "png")
        self._ask("sends dear images", CHAT, chat(self._victim.chat_model, [image_part(data, kind), text_part("x")]))
        self._is_over.wait(8)

    def _breaker(self, rng: random.Random, turn: int) -> None:
        """Break something for a moment."""
        if self._is_over.wait(_FAULT_EVERY_S):
            return
        self._fault_file.write_text(_FAULTS[turn % len(_FAULTS)])
        self.num_faults += 1
        time.sleep(_FAULT_S)
        self._fault_file.write_text("")
