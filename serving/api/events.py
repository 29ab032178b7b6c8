"""Server-sent events."""

from __future__ import annotations

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
"""The end of OpenAI's streams."""


def data_event(body: dict[str, Any]) -> bytes:
    """Return an event without a name."""
    return b"data: " + _text(body) + b"\n\n"


def named_event(body: dict[str, Any]) -> bytes:
    """Return an event named by its body's `type`."""
    return b"event: " + str(body["type"]).encode() + b"\ndata: " + _text(body) + b"\n\n"


def comment(text: str) -> bytes:
    """Return a line that every client reads over: it keeps a connection open, and tells whoever looks."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"


def _text(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
