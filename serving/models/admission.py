"""How many requests a model holds at once: running and waiting, from arrival to the last event."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bundle.errors import OverloadedError


class Admission:
    """Counts a model's requests and refuses one too many. Used by one event loop."""

    def __init__(self, model: str, limit: int) -> None:
        self._model = model
        self._limit = limit
        self.num_admitted = 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place for the length of the block.

        Raises:
            OverloadedError: All places are taken.
        """
        if self.num_admitted >= self._limit:
            raise OverloadedError(
                f"{self._model} holds {self.num_admitted} requests, its limit is {self._limit}. Retry after a while."
            )
        self.num_admitted += 1
        try:
            yield
        finally:
            self.num_admitted -= 1
