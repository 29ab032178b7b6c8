"""A thread that takes messages from an inbox, beats while it works, and never dies unnoticed."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from bundle.errors import EngineDeadError

logger = logging.getLogger(__name__)

Message = TypeVar("Message")

_JOIN_TIMEOUT_S = 30.0  # longer than any one step on the boards we serve on


class Worker(ABC, Generic[Message]):
    """One thread and its inbox.

    A message is either refused with EngineDeadError or reaches `_step` or `_abandon`; none is lost.

    Args:
        name: Of the thread, and in messages.
        stall_timeout_s: With work at hand, no step for so long is a fault.
    """

    def __init__(self, name: str, stall_timeout_s: float) -> None:
        self.name = name
        self._stall_timeout_s = stall_timeout_s
        self._inbox: SimpleQueue[Message | None] = SimpleQueue()  # None: stop
        self._gate = threading.Lock()  # orders a message before or after death, never across it
        self._death: str | None = None
        self._beat_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """True while something is unfinished."""

    @abstractmethod
    def _step(self) -> bool:
        """Take messages from the inbox and do a piece of work; False when it is time to stop."""

    @abstractmethod
    def _abandon(self, error: EngineDeadError, messages: Sequence[Message]) -> None:
        """Fail everything unfinished and these messages, which were never taken."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the current step; what is unfinished fails."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join(_JOIN_TIMEOUT_S)

    @property
    def is_dead(self) -> bool:
        """True once the thread has ended, by an error or by `close`."""
        return self._death is not None

    @property
    def fault(self) -> str:
        """Return why nothing can be served now; empty when it can."""
        if self._death is not None:
            return self._death
        silent_s = time.monotonic() - self._beat_s
        if self.has_work and silent_s > self._stall_timeout_s:
            return f"{self.name} has work but finished no step for {silent_s:.0f} s"
        return ""

    def _send(self, message: Message) -> None:
        with self._gate:
            if self._death is not None:
                raise EngineDeadError(self._death)
            self._inbox.put(message)

    def _beat(self) -> None:
        self._beat_s = time.monotonic()

    def _run(self) -> None:
        death = f"{self.name} was stopped"
        try:
            while self._step():
                pass
        except BaseException as error:
            death = f"{self.name} died: {type(error).__name__}: {error}. Restart the process."
            logger.exception("%s died", self.name)
        finally:
            with self._gate:
                self._death = death
            left = [self._inbox.get() for _ in range(self._inbox.qsize())]
            self._abandon(EngineDeadError(death), [message for message in left if message is not None])
