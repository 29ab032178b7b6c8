"""A request's body, read within limits of bytes, of structure and of time."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from bundle.errors import BodySizeError, ParameterError, PocketVLMError, SlowBodyError
from serving.api.budget import BodyShare
from serving.api.disconnect import finish_within
from serving.settings import ApiSettings

_DRAIN_BYTES = 64 << 20
"""Read and dropped of a body that is refused: many clients only look for an answer once they have sent it all."""
_SEPARATORS = (b",", b"[", b"{")
"""Every value of a JSON text follows one of them, the first aside."""
_MAX_ESCAPES = 2 << 20
"""Backslashes in a body: 13 ns each, in which nothing else runs. PHP writes one for each slash of 20 MiB in base64."""


async def read_body(request: Request, limits: ApiSettings, share: BodyShare) -> bytes:
    """Return the body of a request.

    Args:
        request: Nothing of it was read.
        limits: Of bytes, values and time.
        share: Grows by what is kept.

    Raises:
        BodySizeError: It is too large; most of it was read and dropped, as with the next two.
        ParameterError: It holds more values than may be parsed, or its length is no number.
        OverloadedError: The bodies of all requests together are too large.
        SlowBodyError: It did not arrive in time.
        ClientDisconnect: The client went away before its end.
    """
    arriving = _Arriving(limits, share, _content_length(request))
    receive = _at_a_pace(request.receive, limits)
    has_more = True
    while has_more and arriving.is_wanted:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        arriving.add(message.get("body", b""))
        has_more = message.get("more_body", False)
    return arriving.whole()


class _Arriving:
    """The pieces of one body, judged as they come.

    Args:
        limits: Of bytes and values.
        share: Grows by what is kept.
        announced_bytes: A `Content-Length` above the limit is refused without counting.
    """

    def __init__(self, limits: ApiSettings, share: BodyShare, announced_bytes: int) -> None:
        self._limits = limits
        self._share = share
        self._announced_bytes = announced_bytes
        self._pieces: list[bytes] = []
        self._num_bytes = self._num_values = self._num_escapes = 0
        self._refusal: PocketVLMError | None = None

    @property
    def is_wanted(self) -> bool:
        """False when no more shall be read, not even to be dropped."""
        return self._num_bytes <= self._limits.max_body_bytes + _DRAIN_BYTES

    def add(self, piece: bytes) -> None:
        """Keep the next piece, or nothing of the body from now on."""
        self._num_bytes += len(piece)
        if self._refusal is not None:
            return
        try:
            self._judge(piece)
            self._pieces.append(piece)
        except PocketVLMError as refusal:
            self._refusal = refusal
            self._pieces.clear()
            self._share.drop()

    def _judge(self, piece: bytes) -> None:
        if (found := max(self._num_bytes, self._announced_bytes)) > (limit := self._limits.max_body_bytes):
            raise BodySizeError(f"the body holds {found} bytes or more; at most {limit} are read")
        self._num_values += sum(map(piece.count, _SEPARATORS))
        if self._num_values > (limit := self._limits.max_json_values):
            raise ParameterError(
                f"the body holds more than {limit} commas and opening brackets, the most that are parsed. Send less in "
                "one request."
            )
        self._num_escapes += piece.count(b"\\")
        if self._num_escapes > _MAX_ESCAPES:
            raise ParameterError(
                f"the body holds more than {_MAX_ESCAPES} backslashes, the most that are parsed. Send text as UTF-8."
            )
        self._share.grow(self._num_bytes, 0 if self._pieces else self._announced_bytes)

    def whole(self) -> bytes:
        """Return the body.

        Raises:
            PocketVLMError: It was refused.
        """
        if self._refusal is not None:
            raise self._refusal
        return b"".join(self._pieces)


def _at_a_pace(receive: Receive, limits: ApiSettings) -> Receive:
    """Return a channel that fails when a span of `body_timeout_s` brings less than it must."""
    least_bytes = limits.body_bytes_per_s * limits.body_timeout_s
    span_end_s, span_bytes = time.monotonic() + limits.body_timeout_s, 0

    async def receive_in_time() -> Message:
        nonlocal span_end_s, span_bytes
        try:
            message = await finish_within(span_end_s - time.monotonic(), receive())
        except asyncio.TimeoutError as error:
            raise SlowBodyError(
                f"the body brought {span_bytes} bytes in {limits.body_timeout_s:g} s; a client must send "
                f"{limits.body_bytes_per_s} bytes a second. Try again over a faster connection, or send smaller images."
            ) from error
        span_bytes += len(message.get("body", b""))
        if span_bytes >= least_bytes:
            span_end_s, span_bytes = time.monotonic() + limits.body_timeout_s, 0
        return message

    return receive_in_time


def _content_length(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise ParameterError(f"Content-Length {text!r} is not a number of bytes")
    return int(text)
