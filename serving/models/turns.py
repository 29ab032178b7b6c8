"""Places in front of a worker, which requests take in turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from serving.models.fair_queue import FairQueue


class Turns:
    """A number of places. Who asks for many waits for those who ask for one. Used by one event loop.

    Args:
        num_places: Taken at once; enough that the worker behind never waits.
    """

    def __init__(self, num_places: int) -> None:
        self._num_free = num_places
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @asynccontextmanager
    async def place(self, owner: Hashable) -> AsyncIterator[None]:
        """Hold a place for the length of the block.

        Args:
            owner: Whose turn it has to be.
        """
        await self._enter(owner)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, owner: Hashable) -> None:
        if self._num_free:
            self._num_free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(owner, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not self._waiting.try_remove(owner, turn) and not turn.cancelled():
                self._leave()  # the place was given in the moment in which its taker left
            raise

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._num_free += 1
