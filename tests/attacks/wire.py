"""Requests as bytes on a socket, and how each of them ended."""

from __future__ import annotations

import json
import re
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

CHAT, EMBEDDINGS, CLASSIFY = "/v1/chat/completions", "/v1/embeddings", "/v1/classify"
_PIECE_BYTES = 1 << 18

Ending = Literal["answered", "refused", "lost", "hung"]
"""A whole answer; an error in the API's own form; anything else that ended; nothing in time."""


@dataclass(frozen=True)
class Reply:
    """What came back on one connection.

    Attributes:
        ending: How the request ended, as a client sees it.
        status: 0 where none came.
        headers: Names in lower case.
        body: Decoded from chunks.
        seconds: From the connection's start to the last byte.
    """

    ending: Ending
    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def code(self) -> str:
        """The error's code; empty where there is none."""
        return error_code(self.body)

    def __str__(self) -> str:
        return f"{self.ending} {self.status} after {self.seconds:.1f} s: {self.body[:200]!r}"


def request_bytes(path: str, body: bytes | Mapping[str, Any], headers: str = "Connection: close\r\n") -> bytes:
    """Return a POST request; its connection is closed after the answer, unless told otherwise."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def ask(port: int, path: str, body: bytes | Mapping[str, Any], timeout_s: float = 60.0) -> Reply:
    """Send one request and read its answer to the end."""
    return exchange(port, request_bytes(path, body), timeout_s)


def ask_all(port: int, requests: Iterable[bytes], timeout_s: float = 60.0) -> list[Reply]:
    """Send many requests at once, each on a connection of its own."""
    requests = list(requests)
    with ThreadPoolExecutor(max(len(requests), 1)) as threads:
        return list(threads.map(lambda request: exchange(port, request, timeout_s), requests))


def exchange(port: int, request: bytes, timeout_s: float) -> Reply:
    """Send bytes, and read until the server closes, also while it does not take them all."""
    started_s = time.monotonic()
    answer, is_closed = b"", False
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
            answer, is_closed = _converse(connection, request, started_s + timeout_s)
    except OSError:
        is_closed = True
    return read_reply(answer, is_closed, time.monotonic() - started_s)


def _converse(connection: socket.socket, request: bytes, deadline_s: float) -> tuple[bytes, bool]:
    """Return what came, and whether the server closed the connection before the deadline."""
    connection.setblocking(False)
    poll, left, pieces = select.poll(), memoryview(request), []
    while (patience_s := deadline_s - time.monotonic()) > 0:
        poll.register(connection, select.POLLIN | (select.POLLOUT if left else 0))
        for _, event in poll.poll(patience_s * 1000):
            try:
                if event & ~select.POLLOUT:
                    pieces.append(connection.recv(_PIECE_BYTES))
                    if not pieces[-1]:
                        return b"".join(pieces), True
                elif left:
                    left = left[connection.send(left[:_PIECE_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError:  # reset: what came before it was read already
                return b"".join(pieces), True
    return b"".join(pieces), False


def read_reply(answer: bytes, is_closed: bool, seconds: float) -> Reply:
    """Return the first answer in these bytes, and how it ended; interim ones (RFC 9110, 15.2) come before it."""
    while re.match(rb"HTTP/1\.1 1\d\d ", answer):
        answer = answer.partition(b"\r\n\r\n")[2]
    head, separator, rest = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split()
    if not separator or len(words) < 2 or not words[1].isdigit():
        return Reply("lost" if is_closed else "hung", 0, {}, answer, seconds)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    body, is_whole = _body(headers, rest, is_closed)
    status = int(words[1])
    if not is_whole:
        return Reply("lost" if is_closed else "hung", status, headers, body, seconds)
    return Reply(_ending(status, headers, body), status, headers, body, seconds)


def _body(headers: Mapping[str, str], rest: bytes, is_closed: bool) -> tuple[bytes, bool]:
    """Return the body, and whether all of it is there."""
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size or b"0", 16)
            if length == 0:
                return body, True
            body, rest = body + rest[:length], rest[length + 2 :]
        return body, False
    if "content-length" in headers:
        length = int(headers["content-length"])
        return rest[:length], len(rest) >= length
    return rest, is_closed


def _ending(status: int, headers: Mapping[str, str], body: bytes) -> Ending:
    if headers.get("content-type", "").startswith("text/event-stream"):
        return stream_ending(body)
    try:
        told = json.loads(body)
    except ValueError:
        return "lost"
    if status < 400:
        return "answered"
    return "refused" if isinstance(told, dict) and isinstance(told.get("error"), dict) else "lost"


def stream_ending(body: bytes) -> Ending:
    """Return how a stream ended: with its finish reason or an error, and exactly one [DONE], last."""
    events = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line.strip()]
    if events.count(b"[DONE]") != 1 or events[-1] != b"[DONE]":
        return "lost"
    told = [json.loads(event) for event in events[:-1] if event.startswith(b"{")]
    num_errors = sum("error" in event for event in told)
    num_reasons = sum(bool(choice.get("finish_reason")) for event in told for choice in event.get("choices", ()))
    if num_errors + num_reasons != 1:
        return "lost"
    return "refused" if num_errors else "answered"


def error_code(body: bytes) -> str:
    """Return the code of an error body; empty where it is none."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""


def connect(port: int, receive_buffer_bytes: int = 0) -> socket.socket:
    """Return a connection, with a small receive buffer where one is asked for."""
    connection = socket.socket()
    if receive_buffer_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    return connection


def reset(connection: socket.socket) -> None:
    """Close a connection with RST, as a client that crashed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def is_open(connection: socket.socket) -> bool:
    """Say whether the server has not closed a connection; what it sent is read and dropped."""
    connection.setblocking(False)
    try:
        while connection.recv(_PIECE_BYTES):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
