"""The signals that stop a server: the first asks, the second insists."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stop:
    """What the signals said so far.

    Attributes:
        is_asked: Set by the first: running requests may end.
        is_insisted: Set by the second: they are ended.
        is_interrupt: One of them was SIGINT.
    """

    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    is_insisted: asyncio.Event = field(default_factory=asyncio.Event)
    is_interrupt: bool = False

    def note(self, number: signal.Signals) -> None:
        """Note a signal."""
        self.is_interrupt |= number is signal.SIGINT
        (self.is_insisted if self.is_asked.is_set() else self.is_asked).set()


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """Note SIGTERM and SIGINT while the block lasts, in which nothing else may handle them."""
    loop, stop = asyncio.get_running_loop(), Stop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.note, number)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
