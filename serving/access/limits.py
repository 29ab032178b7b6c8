"""What one key may take: requests and tokens a minute, and requests at once. Counted in this process alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bundle.errors import RateLimitError
from serving.access.keys import ApiKey

_MINUTE_S = 60.0
_BUSY_S = 1.0
"""When a place may be free again: nobody knows."""


class Bucket:
    """An allowance that comes back evenly, a whole minute's at most. It may be overdrawn, and is paid back first.

    Args:
        per_minute: The allowance.
        now_s: By the clock of the caller.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._left = float(per_minute)
        self._at_s = now_s

    def left(self, now_s: float) -> float:
        """Return what may be taken now; below 0 where it is overdrawn."""
        self._left = min(self._left + (now_s - self._at_s) * self._per_s, float(self.per_minute))
        self._at_s = now_s
        return self._left

    def take(self, amount: int, now_s: float) -> None:
        """Take some, whether it is there or not."""
        self._left = self.left(now_s) - amount

    def wait_s(self, now_s: float) -> float:
        """Return how long it takes until one may be taken."""
        return max(1.0 - self.left(now_s), 0.0) / self._per_s

    def reset_s(self, now_s: float) -> float:
        """Return how long it takes until a whole minute's is there."""
        return (self.per_minute - self.left(now_s)) / self._per_s

    @property
    def _per_s(self) -> float:
        return self.per_minute / _MINUTE_S


class KeyLimits:
    """What one key has taken. Used from one event loop.

    Args:
        key: Says what it may take.
        clock: Returns seconds.

    Attributes:
        num_running: Requests under way.
    """

    def __init__(self, key: ApiKey, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = key
        self._clock = clock
        self._requests = None if key.requests_per_minute is None else Bucket(key.requests_per_minute, clock())
        self._tokens = None if key.tokens_per_minute is None else Bucket(key.tokens_per_minute, clock())
        self.num_running = 0

    def is_of(self, key: ApiKey) -> bool:
        """Return whether these are still the limits of a key that was read again."""
        mine = self._key
        return (mine.requests_per_minute, mine.tokens_per_minute, mine.concurrent_requests) == (
            key.requests_per_minute,
            key.tokens_per_minute,
            key.concurrent_requests,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a request as under way while the block lasts.

        Raises:
            RateLimitError: It is one too many; nothing is counted.
        """
        self._check()
        if self._requests is not None:
            self._requests.take(1, self._clock())
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1

    def charge(self, tokens: int) -> None:
        """Take tokens that were read or written."""
        if self._tokens is not None:
            self._tokens.take(tokens, self._clock())

    @property
    def headers(self) -> dict[str, str]:
        """Return what is left, in OpenAI's headers, of what is limited."""
        now_s = self._clock()
        told: dict[str, str] = {}
        for noun, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                told[f"x-ratelimit-limit-{noun}"] = str(bucket.per_minute)
                told[f"x-ratelimit-remaining-{noun}"] = str(max(math.floor(bucket.left(now_s)), 0))
                told[f"x-ratelimit-reset-{noun}"] = duration(bucket.reset_s(now_s))
        return told

    def _check(self) -> None:
        most, now_s = self._key.concurrent_requests, self._clock()
        if most is not None and self.num_running >= most:
            raise RateLimitError(
                f"{self.num_running} requests of the key {self._key.name} are under way; {most} may be. Wait for one "
                "to end.",
                _BUSY_S,
            )
        for noun, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None and (wait_s := bucket.wait_s(now_s)) > 0:
                raise RateLimitError(
                    f"the key {self._key.name} may take {bucket.per_minute} {noun} a minute, and took them; retry in "
                    f"{duration(wait_s)}.",
                    wait_s,
                )


def duration(seconds: float) -> str:
    """Return a length of time as OpenAI's headers write it: 250ms, 7s, 1m30s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest_s = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest_s}s" if minutes else f"{rest_s}s"
