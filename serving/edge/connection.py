"""One connection of the edge server: uvicorn's over h11, with the deadlines and limits that it lacks.

A client may be slow, silent, endless, early or gone; none of them holds a descriptor, memory or a slot for longer than
the settings say. There is no timer per event: `ConnectionWatch` asks every connection twice a second what it waits for.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from serving.api.errors import refusal_body
from serving.settings import HttpSettings

Phase = Literal["unread answer", "refused", "answering", "receiving", "unread rest", "head", "idle"]
"""What a connection waits for: that its client takes what was sent, that it goes, ourselves, its body, the rest of a
body that nobody wants, the rest of a head, or the next request."""

_HEAD_TOO_LARGE = 431
_HEAD_END = re.compile(rb"\n\r?\n")
_SLICE_BYTES = 8 << 10
"""Parsed at once of what may be chunks: h11 takes up to 40 µs for each, and the shortest has six bytes."""
_MAX_FRAMING_BYTES = 8 << 10
_FRAMED_PER_FRAMING = 16
"""A body in chunks may have so many bytes of framing, and one more for as many bytes of its own."""
_LINGER_S = 2.0
"""What comes after a refusal is read and dropped for so long: closed at once, the system would drop the answer."""
_STOPPING_S = 5.0
"""How long a stopping server waits for the rest of a request."""
_PROBE_DELAYS_S = (0.02, 0.1)
"""When a word is looked for from the system of a client that closed its side; every sweep looks as well."""
_TCP_CLOSE_WAIT = 8
"""Linux's state of a socket whose peer sends no more and was not heard to be gone; include/net/tcp_states.h."""


class Connection(H11Protocol):
    """A connection that is watched.

    Args:
        settings: Its limits.
        stalled_client_s: How long its client may take nothing of an answer.
        watch: Of all connections of the server.
        uvicorn: What uvicorn hands to its protocols.
    """

    def __init__(self, settings: HttpSettings, stalled_client_s: float, watch: ConnectionWatch, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._settings = settings
        self._stalled_client_s = stalled_client_s
        self._watch = watch
        self._wait: tuple[Phase, int] = ("idle", 0)  # with a number that changes when the client did something
        self._since_s = time.monotonic()  # of that wait
        self._num_answers = 0
        self._num_reads = 0  # by the client, as far as its answers come in pieces
        self._unsent_bytes = 0  # at the last sweep
        self._framing_bytes = self._framed_bytes = 0  # of a body in chunks
        self._early_bytes = 0  # of requests that came before the last was answered
        self._is_dropping = False  # what comes is read and dropped
        self._is_refused = self._is_half_closed = self._is_stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it where as many as may be are at work."""
        super().connection_made(transport)
        if not self._watch.admit(self):
            self._refuse(503, "too many connections are at work; retry after a while", "busy")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._watch.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the next bytes. A request that comes before the last is answered waits, and hides no departure."""
        num_at_once = len(data) if self._is_receiving and not self._is_chunked else _SLICE_BYTES
        for start in range(0, len(data), num_at_once):
            if not self._is_dropping:
                self._take(data[start : start + num_at_once])

    def _take(self, data: bytes) -> None:
        if self._is_answering:
            self._early_bytes += len(data)
            if self._early_bytes > self._settings.max_head_bytes:
                # Its client sends again what it sent too early: it is told by the end of the connection.
                self.cycle.keep_alive, self._is_dropping = False, True
                return
        elif not self._is_receiving and self._is_head_too_large(data):
            self._refuse_head()
            return
        cycle, was_receiving = self.cycle, self._is_receiving
        num_before = len(cycle.body) if was_receiving else 0
        super().data_received(data)
        if was_receiving and self._is_receiving and self.cycle is cycle:
            self._weigh(len(data), len(cycle.body) - num_before)
        elif self._is_answering:
            self.flow.resume_reading()  # stopped by uvicorn: the end of the connection would not be seen

    def _weigh(self, sent_bytes: int, body_bytes: int) -> None:
        """Refuse a body in chunks so small that reading them takes longer than anything that is done with them."""
        self._framing_bytes += sent_bytes - body_bytes
        self._framed_bytes += body_bytes
        if self._framing_bytes > _MAX_FRAMING_BYTES + self._framed_bytes // _FRAMED_PER_FRAMING:
            self._refuse(
                400, "the body comes in too many small chunks; send a kilobyte or more at once", "small_chunks"
            )

    def eof_received(self) -> bool | None:  # type: ignore[override]  # as asyncio allows
        """Answer a client that only closed its side, and take one for gone that does not read either.

        The two look alike until something is sent to them: here, an interim answer. The system of a client that is
        gone answers it with a reset.
        """
        is_begun = not self._is_answering or self.cycle.response_started
        if self.scheme == "https":  # TLS has no half of a connection
            return None
        if is_begun or self.scope["http_version"] != "1.1" or _tcp_state(self.transport) is None:
            return None
        self.cycle.keep_alive, self._is_half_closed = False, True
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        for delay_s in _PROBE_DELAYS_S:
            self.loop.call_later(delay_s, self._abort_if_gone)
        return True

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._num_answers += 1
        self._early_bytes = self._framing_bytes = self._framed_bytes = 0
        self._watch.used(self)
        super().on_response_complete()
        if self._is_answering:  # one that came early
            self.flow.resume_reading()

    def resume_writing(self) -> None:
        """Note that the client reads."""
        self._num_reads += 1
        super().resume_writing()

    def shutdown(self) -> None:
        """Begin to stop: idle connections are closed, and requests may come to their end."""
        self._is_stopping = True
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or a head over the limit, in the API's own form."""
        fault = sys.exc_info()[1]
        if getattr(fault, "error_status_hint", 400) == _HEAD_TOO_LARGE:
            self._refuse_head()
        else:
            self._refuse(400, f"this is no HTTP request: {fault}", "invalid_http")

    @property
    def phase(self) -> Phase:
        """What the connection waits for."""
        if self.transport.get_write_buffer_size():
            return "unread answer"
        if self._is_refused:
            return "refused"
        if self._is_answering:
            return "answering"
        if self._is_receiving:
            return "receiving"
        if self.conn.their_state is h11.SEND_BODY:
            return "unread rest"
        return "head" if self.conn.trailing_data[0] else "idle"

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    @property
    def _is_chunked(self) -> bool:
        return any(name == b"transfer-encoding" for name, _ in self.headers)

    @property
    def _is_receiving(self) -> bool:
        return self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete

    def _is_head_too_large(self, data: bytes) -> bool:
        """Return whether a head goes on beyond the limit; h11 itself judges only one that is not whole."""
        limit, buffered = self._settings.max_head_bytes, self.conn.trailing_data[0]
        if len(buffered) + len(data) <= limit or self.conn.their_state is not h11.IDLE:
            return False
        return _HEAD_END.search((buffered + data)[:limit]) is None

    def sweep(self, now_s: float) -> None:
        """End the connection if its client makes it wait for too long."""
        self._abort_if_gone()
        wait = self.phase, self._num_answers + self._progress()
        if wait != self._wait:
            self._wait, self._since_s = wait, now_s
            return
        limit_s, end = self._limit(wait[0])
        if limit_s is not None and now_s - self._since_s > limit_s:
            end()

    def _progress(self) -> int:
        """Return a number that grows while the client takes its answer."""
        unsent_bytes = self.transport.get_write_buffer_size()
        self._num_reads += unsent_bytes < self._unsent_bytes
        self._unsent_bytes = unsent_bytes
        return self._num_reads

    def _limit(self, phase: Phase) -> tuple[float | None, Callable[[], None]]:
        """Return how long a wait may be, and what ends it."""
        settings, abort = self._settings, self.transport.abort
        if phase == "answering":
            return None, abort  # the application has deadlines of its own
        if phase == "receiving":
            return _STOPPING_S if self._is_stopping else None, self._stop_receiving
        if phase == "unread answer":
            return self._stalled_client_s, abort
        if phase == "refused":
            return _LINGER_S, abort
        return settings.idle_timeout_s if phase == "idle" and self._num_answers else settings.head_timeout_s, abort

    def _refuse_head(self) -> None:
        limit = self._settings.max_head_bytes
        self._refuse(_HEAD_TOO_LARGE, f"URL and headers hold more than {limit} bytes", "head_too_large")

    def _stop_receiving(self) -> None:
        self._refuse(503, "the server is stopping, and the request is not whole. Send it again.", "engine_dead")

    def _abort_if_gone(self) -> None:
        if self._is_half_closed and _tcp_state(self.transport) not in (None, _TCP_CLOSE_WAIT):
            self.transport.abort()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer in place of the application, and read nothing more."""
        is_open = self.cycle is not None and not self.cycle.response_complete
        if is_open and self.cycle.response_started:
            self.transport.abort()
            return
        self._is_refused = self._is_dropping = True
        self.flow.resume_reading()
        path = self.scope["path"] if is_open else ""  # else it is none's, or the last request's
        self.transport.write(_answer(status, refusal_body(status, message, code, path)))
        if is_open:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


class ConnectionWatch:
    """Keeps the connections of one server few enough, and ends those whose clients make them wait.

    Args:
        max_connections: One more takes the place of the one that was idle for longest, or is refused.
    """

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._connections: dict[Connection, None] = {}  # the one that was used last is the last

    def admit(self, connection: Connection) -> bool:
        """Return whether a connection may stay; ends an idle one where that makes room."""
        if len(self._connections) >= self._max_connections:
            idle = next((each for each in self._connections if each.phase in ("idle", "head", "refused")), None)
            if idle is None:
                return False
            idle.transport.abort()
            self.forget(idle)
        self._connections[connection] = None
        return True

    def used(self, connection: Connection) -> None:
        """Note that a connection served a request."""
        if connection in self._connections:
            self._connections[connection] = self._connections.pop(connection)

    def forget(self, connection: Connection) -> None:
        """Count a connection no longer."""
        self._connections.pop(connection, None)

    def close(self) -> None:
        """Cut off every connection."""
        for connection in list(self._connections):
            connection.transport.abort()

    def sweep(self) -> None:
        """Look at every connection."""
        now_s = time.monotonic()
        for connection in list(self._connections):
            connection.sweep(now_s)


def _answer(status: int, body: dict[str, Any]) -> bytes:
    """Return a whole answer with an error, after which the connection is closed."""
    content = json.dumps(body).encode()
    lines = (
        b"HTTP/1.1 %d %s" % (status, STATUS_PHRASES[status]),
        b"content-type: application/json",
        b"content-length: %d" % len(content),
        b"connection: close",
        *((b"retry-after: 1",) if status == 503 else ()),
    )
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


def _tcp_state(transport: asyncio.Transport) -> int | None:
    """Return the system's state of a connection; None where it does not tell."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        return int(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
    except OSError:
        return None
