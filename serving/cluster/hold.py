"""Requests for a model that has no replica: a few are held until there is one, and are told so; more are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bundle.errors import ModelStartingError


class Hold:
    """The places for requests of one model that wait for its first replica, in one process. Used by one event loop.

    Args:
        model: Its name, for what is told.
        max_requests: Places.
        timeout_s: How long one may be waited for.
    """

    def __init__(self, model: str, max_requests: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.num_held = 0
        self._model = model
        self._max_requests = max_requests

    @property
    def reason(self) -> str:
        """What is waited for, as a client is told."""
        return f"{self._model} was not asked for in a while and is being loaded"

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for the length of the block.

        Raises:
            ModelStartingError: All are taken.
        """
        if self.num_held >= self._max_requests:
            raise ModelStartingError(
                f"{self.reason}; {self.num_held} requests wait for it here already, the limit. Retry after a while."
            )
        self.num_held += 1
        try:
            yield
        finally:
            self.num_held -= 1
