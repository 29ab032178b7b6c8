"""One request at one replica: sent, watched while it waits, cancelled when nobody waits any more."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from bundle.errors import EngineDeadError
from serving.cluster.failures import cancel, is_loss, own_error
from serving.cluster.watch import CALL, Call, ReplicaWatch

LOOK_S = 0.5
"""Between two looks at what is under way: how late a silent replica, or the end of a drain, is noticed."""

_TRIES = 2
"""Replicas that a request may be sent to, one after another, while nothing came of it. A request that brings its
replica down brings down no more than these."""

T = TypeVar("T")


class Outlook:
    """Whether anything can still come of a request that was sent, by the watch over the replicas that it may go to.

    Args:
        watch: Over these replicas.
        patience_s: How long the request may wait while none of them can take it.
        stop_reason: Returns why everything under way is to end now; empty while it is not.

    Attributes:
        is_lost: Nothing will come of it for what happened to its replica.
    """

    def __init__(self, watch: ReplicaWatch, patience_s: float, stop_reason: Callable[[], str] = str) -> None:
        self.is_lost = False
        self._watch = watch
        self._patience_s = patience_s
        self._stop_reason = stop_reason
        self._num_silences = watch.num_silences
        self._unfit_since_s: float | None = None
        self._call = Call()
        self._context = contextvars.copy_context()
        self._context.run(CALL.set, self._call)

    def send(self, function: Callable[[], T]) -> T:
        """Return what the function returns, called where the router finds the call that it sends."""
        return self._context.run(function)

    async def until_done(self, waiting: asyncio.Future[Any]) -> None:
        """Return once a future is done, which is cancelled where nobody waits for it any more.

        It is not awaited itself: a cancellation by Ray in it would look like one of the caller's.

        Raises:
            EngineDeadError: Nothing will come of it.
        """
        try:
            self._look_for_stop()
            while not (await asyncio.wait((waiting,), timeout=LOOK_S))[0]:
                self._look()
        finally:
            waiting.cancel()

    def _look_for_stop(self) -> None:
        if reason := self._stop_reason():
            raise EngineDeadError(reason)

    def _look(self) -> None:
        self._look_for_stop()
        replica = self._call.replica
        if self._watch.is_silent(replica) if replica else self._watch.num_silences > self._num_silences:
            self.is_lost = True
            raise EngineDeadError(f"a process has been silent for {self._watch.silent_after_s:g} s; send it again")
        if replica or self._watch.has_fit:
            self._unfit_since_s = None
            return
        self._unfit_since_s = self._unfit_since_s or time.monotonic()
        if time.monotonic() - self._unfit_since_s >= self._patience_s:
            raise EngineDeadError(f"nothing took it for {self._patience_s:g} s: {self._watch.reason}; send it again")


class WatchedCall:
    """A request sent through a deployment handle.

    Args:
        send: Sends it, and returns Ray's response: an awaitable, or an asynchronous iterator.
        outlook: Of this request alone.
    """

    def __init__(self, send: Callable[[], Any], outlook: Outlook) -> None:
        self._outlook = outlook
        self._response = outlook.send(send)

    @property
    def is_lost(self) -> bool:
        """Whether it failed for what happened to its replica; another may take it, if nothing came of it yet."""
        return self._outlook.is_lost

    async def result(self) -> Any:
        """Return what the replica answers.

        Raises:
            PocketVLMError: As the replica raised it, or what happened to the replica.
        """
        return await self._outcome(asyncio.ensure_future(self._response))

    async def next(self) -> Any:
        """Return the next of the replica's stream, None at its end.

        Raises:
            PocketVLMError: As the replica raised it, or what happened to the replica.
        """
        return await self._outcome(asyncio.ensure_future(anext(self._response, None)))

    def cancel(self) -> None:
        """Stop the replica's work; to be called unless the answer came to its end."""
        cancel(self._response)

    async def _outcome(self, waiting: asyncio.Future[Any]) -> Any:
        await self._outlook.until_done(waiting)
        try:
            return waiting.result()
        except (Exception, asyncio.CancelledError) as error:
            self._outlook.is_lost = is_loss(error)
            raise own_error(error) from error


async def first_of(
    send: Callable[[], Any], outlook: Callable[[], Outlook], what: Callable[[WatchedCall], Awaitable[Any]] | None = None
) -> tuple[WatchedCall, Any]:
    """Return a call and the first that came of it, from as many replicas as it takes.

    Args:
        send: Sends the request, as of `WatchedCall`; called for each replica that it is sent to.
        outlook: Makes one for each.
        what: Is waited for of a call; None: its result.

    Raises:
        PocketVLMError: As a replica raised it, or what happened to the last one.
    """
    for tries_left in reversed(range(_TRIES)):
        call = WatchedCall(send, outlook())
        try:
            return call, await (what or WatchedCall.result)(call)
        except BaseException as error:
            call.cancel()
            if not (isinstance(error, EngineDeadError) and call.is_lost and tries_left):
                raise
    raise RuntimeError(f"{_TRIES} tries are none")
