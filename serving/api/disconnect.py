"""Work that ends when the client that asked for it goes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")

logger = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 5.0
"""What is cancelled ends at its next wait; a slot is free within milliseconds."""


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it when the client closes the connection.

    Args:
        receive: The request's ASGI channel, its body read to the end.
        work: Cancelled, and waited for, before this returns or raises.

    Raises:
        ClientDisconnect: The client went away first.
    """
    task = asyncio.ensure_future(contained(work))
    watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _stop(task, watcher)


async def _stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait for their end; one that does not end is left behind, for its request must be answered."""
    for task in tasks:
        task.cancel()
    ended, left = await asyncio.wait(tasks, timeout=_STOP_TIMEOUT_S)
    for task in ended:
        if not task.cancelled():
            task.exception()  # it was raised already, or came too late to matter
    for task in left:
        logger.error("work that was cancelled %.0f s ago goes on: %s", _STOP_TIMEOUT_S, task)


async def contained(work: Awaitable[T]) -> T:
    """Return the result of `work`.

    Raises:
        RuntimeError: It raised what is no Exception: a library's panic, or SystemExit. An event loop that is handed
            one of those ends.
    """
    try:
        return await work
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


async def finish_within(timeout_s: float, work: Awaitable[T]) -> T:
    """Return the result of `work`, or cancel it when it takes longer.

    As `asyncio.wait_for`, which until Python 3.12 forgets its own cancellation where the work is done in that moment: a
    stream would go on for a client that has left. It also makes a task of the work, which most sends are too short for.

    Args:
        timeout_s: How long to wait.
        work: Cancelled, and waited for, before this raises.

    Raises:
        TimeoutError: The work took longer.
    """
    waiting, is_late = _own_task(), False

    def give_up() -> None:
        nonlocal is_late
        is_late = True
        waiting.cancel()

    timer = asyncio.get_running_loop().call_later(timeout_s, give_up)
    try:
        return await work
    except asyncio.CancelledError as error:
        if is_late:
            raise asyncio.TimeoutError from error
        raise
    finally:
        timer.cancel()


def _own_task() -> asyncio.Task[Any]:
    if (task := asyncio.current_task()) is None:
        raise RuntimeError("only a task can be timed")
    return task


async def close(events: AsyncIterator[Any]) -> None:
    """Close an iterator now, so that its work stops with it."""
    if isinstance(events, AsyncGenerator):
        await events.aclose()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
