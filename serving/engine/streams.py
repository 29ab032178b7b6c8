"""What an engine thread tells of a sequence, and how that reaches the event loop of whoever reads it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from bundle.errors import PocketVLMError
from serving.engine.sampling.choice import Choice
from serving.engine.sequence import Sequence
from serving.protocol import FinishReason


@dataclass(frozen=True)
class Sampled:
    """One token of an answer, and the monotonic time at which it was chosen."""

    choice: Choice
    sampled_s: float

    @property
    def token_id(self) -> int:
        """The token."""
        return self.choice.token_id


@dataclass(frozen=True)
class Ended:
    """The terminal event of a sequence that ran to its end; the reason is None when it was cancelled."""

    reason: FinishReason | None


@dataclass(frozen=True)
class Failed:
    """The terminal event of a sequence that could not go on."""

    error: PocketVLMError


StreamEvent = Sampled | Ended | Failed


class TokenStream:
    """One sequence's events: written by the engine thread, read by one task of an event loop.

    The terminal event is the first one given, whether the engine thread gives it or whoever watches that thread. Events
    are read in the order in which they were put; a reader that waits learns of them by `wake`.
    """

    def __init__(self, sequence: Sequence, loop: asyncio.AbstractEventLoop) -> None:
        self.sequence = sequence
        self.loop = loop
        self._events: deque[StreamEvent] = deque()
        self._has_events = asyncio.Event()
        self._gate = threading.Lock()
        self._is_over = False

    def try_put(self, event: StreamEvent) -> bool:
        """Add an event, of which `wake` is to tell; False when the terminal one was given before."""
        with self._gate:
            if self._is_over:
                return False
            self._is_over = not isinstance(event, Sampled)
            self._events.append(event)
            return True

    async def get(self) -> StreamEvent:
        """Return the next event; the terminal one is the last."""
        while not self._events:
            self._has_events.clear()  # before the wait: who puts one now has yet to wake this loop
            await self._has_events.wait()
        return self._events.popleft()

    def notice(self) -> None:
        """Let the reader go on; called on its loop."""
        self._has_events.set()


def wake(streams: Iterable[TokenStream]) -> list[TokenStream]:
    """Let readers see what was put, each loop being called once; return the streams whose loop was closed."""
    of_loop: dict[asyncio.AbstractEventLoop, list[TokenStream]] = {}
    for stream in streams:
        of_loop.setdefault(stream.loop, []).append(stream)
    unread = []
    for loop, its_streams in of_loop.items():
        try:
            loop.call_soon_threadsafe(_notice_all, its_streams)
        except RuntimeError:  # the loop was closed: nobody reads any more
            unread += its_streams
    return unread


def _notice_all(streams: Iterable[TokenStream]) -> None:
    for stream in streams:
        stream.notice()
