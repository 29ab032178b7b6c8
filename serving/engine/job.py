"""One piece of work whose result somebody waits for on another thread."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Job(Generic[Result]):
    """Ends once, whoever ends it: the thread that does it, or a watch that has waited too long for that thread.

    Attributes:
        future: Of whoever waits; cancelling it before the work begins drops the job.
    """

    def __init__(self) -> None:
        self.future: Future[Result] = Future()
        self._gate = threading.Lock()

    def try_begin(self) -> bool:
        """Return True when the work shall be done; False when it was dropped or has failed meanwhile."""
        with self._gate:
            return not self.future.done() and self.future.set_running_or_notify_cancel()

    def finish(self, result: Result) -> None:
        """Hand out the result; nothing happens to a job that has failed meanwhile."""
        with self._gate:
            if not self.future.done():
                self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Hand out an error, whether the work was begun or not; nothing happens to a job that is over."""
        with self._gate:
            if self.future.running() or (not self.future.done() and self.future.set_running_or_notify_cancel()):
                self.future.set_exception(error)
