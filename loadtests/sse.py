"""Server-sent events, parsed as the bytes arrive, and the chat answer that they carry.

Source: WHATWG HTML, section 9.2.6 (event stream interpretation). We differ in one point: `retry` is ignored, since a
load test never reconnects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DONE = "[DONE]"
"""The data of the event that ends an OpenAI-style stream."""


@dataclass(frozen=True)
class ServerSentEvent:
    """One dispatched event; `data` joins its data lines with newlines."""

    data: str
    event: str = "message"


class SSEParser:
    """Turns pieces of a response body, cut anywhere, into events."""

    def __init__(self) -> None:
        self._buffer = b""
        self._is_start = True
        self._data: list[str] = []
        self._event = ""

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that `piece` completes. An event cut off by the stream's end is never yielded."""
        self._buffer += piece
        for line in self._take_lines():
            if line:
                self._take_field(line)
            else:
                data, kind = "\n".join(self._data), self._event or "message"
                self._data, self._event = [], ""
                if data:
                    yield ServerSentEvent(data, kind)

    def _take_lines(self) -> Iterator[str]:
        """Yield the whole lines of the buffer; a carriage return at its very end may be half a line end, and waits."""
        while True:
            ends = [place for mark in (b"\n", b"\r") if (place := self._buffer.find(mark)) >= 0]
            if not ends:
                return
            end = min(ends)
            if self._buffer[end:] == b"\r":
                return
            width = 2 if self._buffer[end : end + 2] == b"\r\n" else 1
            raw, self._buffer = self._buffer[:end], self._buffer[end + width :]
            yield self._decode(raw)

    def _decode(self, raw: bytes) -> str:
        if self._is_start:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
            self._is_start = False
        return raw.decode("utf-8", errors="replace")

    def _take_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value


@dataclass(frozen=True)
class ChatDelta:
    """What one event says of a chat answer.

    Attributes:
        text: The new text; empty where the event carries none.
        finish_reason: Set by the event that ends the choice.
        output_tokens: From the usage event, where the server sends one.
        error: The server's message, where the event reports a failure.
        is_done: True for the terminating event.
    """

    text: str = ""
    finish_reason: str | None = None
    output_tokens: int | None = None
    error: str | None = None
    is_done: bool = False


def read_delta(event: ServerSentEvent) -> ChatDelta:
    """Return what an event of `/v1/chat/completions` means; a malformed one is an error in the delta."""
    if event.data == DONE:
        return ChatDelta(is_done=True)
    try:
        body = json.loads(event.data)
        if event.event == "error" or "error" in body:
            return ChatDelta(error=error_message(body))
        return _read_chunk(body)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return ChatDelta(error=f"not a chat chunk: {event.data[:80]}")


def _read_chunk(body: dict[str, Any]) -> ChatDelta:
    usage = body.get("usage")
    choices = body["choices"]
    choice = choices[0] if choices else {"delta": {}}
    return ChatDelta(
        text=choice["delta"].get("content") or "",
        finish_reason=choice.get("finish_reason"),
        output_tokens=usage["completion_tokens"] if usage else None,
    )


def error_message(body: Any) -> str:
    """Return the text of an error body: OpenAI's `{"error": {"message": ...}}`, or whatever is there instead."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)
