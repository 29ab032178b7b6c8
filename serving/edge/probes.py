"""Health from a thread of its own: whatever keeps the event loop busy, probes are answered, and told of its silence."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.protocol import Health

_TIMEOUT_S = 2.0
"""For a probe's request to arrive; a kubelet's waits no longer for the answer."""
_MAX_HEAD_BYTES = 4096
_FIRST = Health(is_ready=False, reason="the server is starting")


class Heartbeat:
    """What the event loop told of itself last. Written by the loop, read by any thread.

    Args:
        timeout_s: A loop that is silent for longer is neither live nor ready.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._last = (time.monotonic(), _FIRST)

    def beat(self, health: Health) -> None:
        """Note that the loop runs, and how it is."""
        self._last = (time.monotonic(), health)

    def health(self) -> Health:
        """Return the last health, or what its age says."""
        beaten_s, health = self._last
        silent_s = time.monotonic() - beaten_s
        if silent_s <= self._timeout_s:
            return health
        reason = f"the event loop has been silent for {silent_s:.0f} s; at most {self._timeout_s:g} s are well"
        return Health(is_ready=False, reason=reason, is_alive=False)


@contextmanager
def probes_answered(listener: socket.socket, health: Callable[[], Health]) -> Iterator[None]:
    """Answer `/health/live` and `/health/ready` on a listener, from another thread, while the block lasts."""
    is_over = threading.Event()
    thread = threading.Thread(target=_run, args=(listener, health, is_over), name="probes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(_TIMEOUT_S)


def _run(listener: socket.socket, health: Callable[[], Health], is_over: threading.Event) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _TIMEOUT_S)
            writer.write(_answer(head, health()))
            await asyncio.wait_for(writer.drain(), _TIMEOUT_S)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError, OSError):
            writer.transport.abort()
        else:
            writer.close()

    async def serve() -> None:
        async with await asyncio.start_server(answer, sock=listener, limit=_MAX_HEAD_BYTES):
            while not is_over.is_set():
                await asyncio.sleep(0.1)

    asyncio.run(serve())


def _answer(head: bytes, health: Health) -> bytes:
    """Return the whole answer to one request."""
    method, _, rest = head.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    well = {b"/health/live": health.is_alive, b"/health/ready": health.is_ready}
    if method not in (b"GET", b"HEAD") or path not in well:
        return _response(b"404 Not Found", {"status": "only /health/live and /health/ready are here"}, method)
    word = path.rpartition(b"/")[2].decode()
    if well[path]:
        return _response(b"200 OK", {"status": word}, method)
    return _response(b"503 Service Unavailable", {"status": f"not {word}", "reason": health.reason}, method)


def _response(status: bytes, told: dict[str, str], method: bytes) -> bytes:
    content = json.dumps(told).encode()
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return head % (status, len(content)) + (b"" if method == b"HEAD" else content)
