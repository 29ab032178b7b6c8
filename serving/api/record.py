"""What is known of one request while it is served, and the line that the log gets of it."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.log_format import FACTS, REQUEST

REQUEST_ID = "X-Request-ID"
QUIET_PATHS = ("/health/", "/metrics")
"""What probes and scrapers ask every few seconds: logged at the level debug."""
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHOWN_CHARACTERS = 200

logger = logging.getLogger("pocketvlm.access")


@dataclass
class RequestRecord:
    """One request.

    Attributes:
        name: Its id: the client's own where that is short and plain.
        arrived_s: By the monotonic clock.
        model: The served model that it is for, once that is known: never what a caller invents.
        status: Of the answer; 0 where none began.
        answer: The id under which the engine and the answer's own body know it; empty where none was begun.
        prompt_tokens: As the engine counted them; None where it did not.
        completion_tokens: Likewise.
        first_token_s: From arrival to the first token.
        key: The name of the key that it came with.
        charge: Takes tokens from what that key may.
        until_end: What is given back when the answer has ended, however it ends.
    """

    name: str
    arrived_s: float
    model: str = ""
    status: int = 0
    answer: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_s: float | None = None
    key: str = ""
    charge: Callable[[int], None] = lambda tokens: None
    until_end: ExitStack = field(default_factory=ExitStack)

    def saw_token(self) -> None:
        """Note the time of the first token."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.arrived_s


def record_of(request: Request) -> RequestRecord:
    """Return the record of the request that is being served."""
    record: RequestRecord = request.state.record
    return record


class Recorded:
    """Gives every request its record and its `X-Request-ID`, and the log one line when it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get(REQUEST_ID, "")
        record = RequestRecord(asked if _SAFE_ID.fullmatch(asked) else uuid.uuid4().hex, time.monotonic())
        scope.setdefault("state", {})["record"] = record
        served = REQUEST.set(record.name)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = record.name
            await send(message)

        try:
            with record.until_end:
                await self._app(scope, receive, send_named)
        finally:
            _log(scope, record)
            REQUEST.reset(served)


def _log(scope: Scope, record: RequestRecord) -> None:
    level = logging.DEBUG if scope["path"].startswith(QUIET_PATHS) else logging.INFO
    if not logger.isEnabledFor(level):
        return
    facts = {
        "key": record.key or None,
        "model": record.model or None,
        "status": record.status or "none",
        "answer": record.answer or None,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "first_token_s": None if record.first_token_s is None else round(record.first_token_s, 3),
        "total_s": round(time.monotonic() - record.arrived_s, 3),
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    told = " ".join(f"{name}={value}" for name, value in facts.items())
    client, method, path = (scope.get("client") or ("-",))[0], scope["method"], _path(scope)
    more = {"client": client, "method": method, "path": path, **facts}
    logger.log(level, "%s %s %s %s %s", record.name, client, method, path, told, extra={FACTS: more})


def _path(scope: Scope) -> str:
    """Return the path as it was sent: decoded, it could hold a line break and forge a line of the log."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("ascii", "backslashreplace")
    path = raw[:_SHOWN_CHARACTERS].decode("ascii", "backslashreplace")
    return path if path.isprintable() else repr(path)
