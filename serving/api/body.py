"""ASGI layers around the application: a name for every request, and a bound on every body."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle.errors import BodySizeError, ParameterError
from serving.api.errors import error_body, http_error

REQUEST_ID = "X-Request-ID"
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DRAIN_BYTES = 64 << 20
"""Read and dropped of a body that is too large: many clients only look for an answer once they have sent it all."""


class RequestName:
    """Answers every request with an `X-Request-ID`: the client's own where it is short and plain, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get(REQUEST_ID, "")
        name = asked if _SAFE_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_name"] = name

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        await self._app(scope, receive, send_named)


class BodyLimit:
    """Reads each body before the application sees it, and answers 413 for one over the limit.

    Args:
        app: Called with the whole body as one message.
        max_bytes: Of a body, counted as it arrives; a `Content-Length` above it is refused without counting.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            announced = _content_length(scope)
            body = await self._read(receive, announced)
        except (BodySizeError, ParameterError) as error:
            headers = {"Connection": "close"}
            response = JSONResponse(error_body(error), http_error(error).status, headers)
            await response(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive, announced: int) -> bytes | None:
        """Return the body, or None when the client went away before its end.

        Raises:
            BodySizeError: It is too large; most of it was read and dropped.
        """
        pieces: list[bytes] = []
        size_bytes, has_more = 0, True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece, has_more = message.get("body", b""), message.get("more_body", False)
            size_bytes += len(piece)
            if max(size_bytes, announced) <= self._max_bytes:
                pieces.append(piece)
            else:
                pieces.clear()
            if size_bytes > self._max_bytes + _DRAIN_BYTES:
                break
        if (found := max(size_bytes, announced)) > self._max_bytes:
            raise BodySizeError(f"the body holds {found} bytes or more; at most {self._max_bytes} are read")
        return b"".join(pieces)


def _content_length(scope: Scope) -> int:
    text = Headers(scope=scope).get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise ParameterError(f"Content-Length {text!r} is not a number of bytes")
    return int(text)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a channel that gives the body once, then what the real one gives."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
