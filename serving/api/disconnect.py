"""Work that ends when the client that asked for it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it when the client closes the connection.

    Args:
        receive: The request's ASGI channel, its body read to the end.
        work: Cancelled, and waited for, before this returns or raises.

    Raises:
        ClientDisconnect: The client went away first.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for future in (task, watcher):
            future.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


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
    waiting, is_late = asyncio.current_task(), False
    assert waiting is not None

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


async def close(events: AsyncIterator[Any]) -> None:
    """Close an iterator now, so that its work stops with it."""
    if isinstance(events, AsyncGenerator):
        await events.aclose()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
