"""A thread that takes messages from an inbox, beats while it works, and never dies unnoticed."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from bundle.errors import EngineDeadError
from serving.watch import Patience

logger = logging.getLogger(__name__)

Message = TypeVar("Message")

_JOIN_TIMEOUT_S = 30.0  # longer than any one step on the boards we serve on
_STALLED_JOIN_TIMEOUT_S = 0.1  # a thread that hangs is not waited for: the process ends without it


class Worker(ABC, Generic[Message]):
    """One thread and its inbox.

    A message is either refused with EngineDeadError or reaches `_step` or `_abandon`; none is lost. A thread that hangs
    may go on one day: what it was working on has failed by then, and it takes new work again.

    Args:
        name: Of the thread, and in messages.
        patience: How long it may take over one step.
    """

    def __init__(self, name: str, patience: Patience) -> None:
        self.name = name
        self._patience = patience
        self._inbox: SimpleQueue[Message | None] = SimpleQueue()  # None: stop
        self._gate = threading.Lock()  # orders a message before or after death, never across it
        self._death: str | None = None
        self._beat_s = time.monotonic()
        self._thread: threading.Thread | None = None

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """True while something is unfinished."""

    @abstractmethod
    def _step(self) -> bool:
        """Take messages from the inbox and do a piece of work; False when it is time to stop."""

    @abstractmethod
    def _abandon(self, error: EngineDeadError, messages: Sequence[Message]) -> None:
        """Fail everything unfinished and these messages, which were never taken.

        Called on the thread when it ends; on another while it hangs, in which case it must find nothing more to do for
        what was failed here, should it go on.
        """

    def start(self, warm_up: Callable[[], None] = lambda: None) -> None:
        """Start the thread and wait for what it does first.

        Args:
            warm_up: Runs on the thread: what a device captures of a run belongs to the thread that ran it.
        """
        warmed: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(warm_up, warmed), name=self.name, daemon=True)
        self._thread.start()
        warmed.result()

    def close(self) -> None:
        """Stop after the current step; what is unfinished fails."""
        if self._thread is None:
            return
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join(_STALLED_JOIN_TIMEOUT_S if self.fault else _JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            self._abandon(EngineDeadError(f"{self.name} was stopped while it hung"), self._emptied_inbox())

    @property
    def is_dead(self) -> bool:
        """True once the thread has ended, by an error or by `close`."""
        return self._death is not None

    @property
    def needs_restart(self) -> bool:
        """True when only a restart of the process helps: the thread has ended, or hangs for too long."""
        return self.is_dead or self._silent_s > self._patience.restart_timeout_s

    @property
    def fault(self) -> str:
        """Return why nothing can be served now; empty when it can."""
        if self._death is not None:
            return self._death
        silent_s = self._silent_s
        if silent_s > self._patience.stall_timeout_s:
            return f"{self.name} has work but finished no step for {silent_s:.0f} s"
        return ""

    def relieve(self) -> None:
        """Fail what waits for a thread that hangs."""
        if not self.is_dead and (fault := self.fault):
            with self._gate:
                messages = self._emptied_inbox()
            self._abandon(EngineDeadError(f"{fault}; send the request again after a while"), messages)

    @property
    def _silent_s(self) -> float:
        """For how long work is at hand and no step was finished."""
        return time.monotonic() - self._beat_s if self.has_work else 0.0

    def _emptied_inbox(self) -> list[Message]:
        """Return the messages that were never taken; a wish to stop stays in the inbox."""
        left = []
        with suppress(Empty):
            while True:
                left.append(self._inbox.get_nowait())
        if None in left:
            self._inbox.put(None)
        return [message for message in left if message is not None]

    def _send(self, message: Message) -> None:
        with self._gate:
            if fault := self.fault:
                raise EngineDeadError(fault)
            self._inbox.put(message)

    def _beat(self) -> None:
        self._beat_s = time.monotonic()

    def _run(self, warm_up: Callable[[], None], warmed: Future[None]) -> None:
        death = f"{self.name} was stopped"
        try:
            try:
                warm_up()
            except BaseException as error:
                warmed.set_exception(error)
                return
            warmed.set_result(None)
            while self._step():
                pass
        except BaseException as error:
            death = f"{self.name} died: {type(error).__name__}: {error}. Restart the process."
            logger.exception("%s died", self.name)
        finally:
            with self._gate:
                self._death = death
            self._abandon(EngineDeadError(death), self._emptied_inbox())
