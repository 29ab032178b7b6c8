"""Threads that do pieces of requests' own work: fairly, and under a watch."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from bundle.errors import EngineDeadError, PocketVLMError
from serving.engine.faults import explained
from serving.engine.job import Job
from serving.models.fair_queue import FairQueue
from serving.watch import Patience

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Task(Job[Any]):
    """One call.

    Attributes:
        owner: Whose work it is.
        started_s: Monotonic time; 0 while it waits.
    """

    def __init__(self, owner: Hashable, work: Callable[[], Any]) -> None:
        super().__init__()
        self.owner = owner
        self.started_s = 0.0
        self._work: Callable[[], Any] | None = work

    def do(self) -> None:
        """Call, and hand out what comes of it, an exception of whatever kind included."""
        work, self._work = self._work, None  # what it holds is not kept for as long as somebody holds the result
        if work is None or not self.try_begin():
            return
        try:
            self.finish(work())
        except BaseException as error:  # a panic of a tokenizer, or SystemExit, is no reason for a thread to end
            if not isinstance(error, PocketVLMError):
                logger.exception("%s failed in %s", self.owner, threading.current_thread().name)
            self.fail(explained(error))

    def drop(self) -> None:
        """Forget the work, which is not begun."""
        self._work = None


class Crew:
    """A few daemon threads. Those who give them work take turns, however much each of them has.

    A call cannot be stopped. One that is silent for too long fails, and its thread is lost until the call returns;
    with all threads lost, the crew is at fault and takes nothing.

    Args:
        name: Of the threads, and in messages.
        num_threads: At least 1.
        patience: How long one call may take.
    """

    def __init__(self, name: str, num_threads: int, patience: Patience) -> None:
        self.name = name
        self._patience = patience
        self._num_threads = num_threads
        self._changed = threading.Condition()
        self._waiting: FairQueue[_Task] = FairQueue()
        self._running: set[_Task] = set()
        self._lost: set[_Task] = set()
        self._is_closed = False
        for index in range(num_threads):
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True).start()

    async def run(
        self, owner: Hashable, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return what the function returns, called on one of the threads; dropped when the caller leaves before.

        Args:
            owner: Whose work it is: owners take turns.
            function: Called with what follows.

        Raises:
            EngineDeadError: The crew is closed or hangs.
            PocketVLMError: The function raised it, or a MachineError for whatever else it raised.
        """
        task = _Task(owner, partial(function, *args, **kwargs))
        with self._changed:
            if fault := self.fault:
                raise EngineDeadError(fault)
            self._waiting.push(owner, task)
            self._changed.notify()
        try:
            result: Result = await asyncio.wrap_future(task.future)
            return result
        except asyncio.CancelledError:
            self._forget(task)
            raise

    @property
    def num_waiting(self) -> int:
        """Calls that were not begun."""
        with self._changed:
            return len(self._waiting)

    @property
    def fault(self) -> str:
        """Why nothing can be served now; empty when it can."""
        if self._is_closed:
            return "the engine was stopped"
        if len(self._lost) >= self._num_threads:
            return f"{self.name}: all of {self._num_threads} threads hang, one for {self._lost_s:.0f} s"
        return ""

    @property
    def needs_restart(self) -> bool:
        """True when every thread hangs, and one for too long."""
        is_over = self._lost_s > self._patience.restart_timeout_s
        return is_over and len(self._lost) >= self._num_threads

    def relieve(self) -> None:
        """Fail calls that take too long; with all threads lost, those that wait as well."""
        now_s = time.monotonic()
        with self._changed:
            late = [task for task in self._running if now_s - task.started_s > self._patience.stall_timeout_s]
            self._running.difference_update(late)
            self._lost.update(late)
            fault = self.fault
            waiting = self._waiting.clear() if fault else []
        for task in late:
            logger.error("%s: a call for %s hangs", self.name, task.owner)
            task.fail(EngineDeadError(f"{self.name} took over {self._patience.stall_timeout_s:g} s for one call"))
        for task in waiting:
            task.fail(EngineDeadError(fault))

    def close(self) -> None:
        """Refuse new work and fail what waits; a call that was begun ends by itself."""
        with self._changed:
            self._is_closed = True
            waiting = self._waiting.clear()
            self._changed.notify_all()
        for task in waiting:
            task.fail(EngineDeadError(self.fault))

    @property
    def _lost_s(self) -> float:
        return time.monotonic() - min((task.started_s for task in list(self._lost)), default=float("inf"))

    def _work(self) -> None:
        while (task := self._take()) is not None:
            task.do()
            with self._changed:
                self._running.discard(task)
                self._lost.discard(task)

    def _take(self) -> _Task | None:
        """Return the next task, the owner's next one in its turn; None when the crew is closed."""
        with self._changed:
            while not self._waiting:
                if self._is_closed:
                    return None
                self._changed.wait()
            task = self._waiting.pop()
            task.started_s = time.monotonic()
            self._running.add(task)
            return task

    def _forget(self, task: _Task) -> None:
        """Drop a task for which nobody waits any more, unless it was begun."""
        with self._changed:
            if self._waiting.try_remove(task.owner, task):
                task.drop()
