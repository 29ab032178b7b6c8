"""The time by which a request must be answered."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from bundle.errors import DeadlineError, ParameterError
from serving.api.disconnect import finish_within

T = TypeVar("T")

REQUEST_TIMEOUT = "X-Request-Timeout"
"""Seconds that a client waits. Ray Serve's own header has another name: its proxy answers late requests in its way."""


@dataclass(frozen=True)
class Deadline:
    """When a request's work is stopped.

    Attributes:
        timeout_s: From the request's arrival.
        deadline_s: By the monotonic clock.
    """

    timeout_s: float
    deadline_s: float

    @classmethod
    def of(cls, request: Request, arrived_s: float, most_s: float) -> Deadline:
        """Return the deadline that a request asks for, or the server's.

        Args:
            request: May have the header `X-Request-Timeout`.
            arrived_s: By the monotonic clock.
            most_s: The server's own limit.

        Raises:
            ParameterError: The header is no number of seconds above 0, or one above the server's limit.
        """
        asked = request.headers.get(REQUEST_TIMEOUT)
        timeout_s = most_s if asked is None else _seconds(asked, most_s)
        return cls(timeout_s, arrived_s + timeout_s)

    async def finish(self, work: Awaitable[T]) -> T:
        """Return the result of `work`, or cancel it at the deadline.

        Raises:
            DeadlineError: The deadline came first.
        """
        try:
            return await finish_within(self.deadline_s - time.monotonic(), work)
        except asyncio.TimeoutError as error:
            raise DeadlineError(
                f"the answer was not ready within {self.timeout_s:g} s, the request's time limit, and was stopped. Ask "
                "for fewer tokens, stream, or try again when less is going on."
            ) from error


def _seconds(text: str, most_s: float) -> float:
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s <= most_s:
        raise ParameterError(
            f"the header {REQUEST_TIMEOUT} is {text[:40]!r}; it must be seconds above 0 and at most {most_s:g}",
            REQUEST_TIMEOUT,
        )
    return timeout_s
