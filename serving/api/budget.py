"""A budget in bytes over everything that an application holds of its requests' bodies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bundle.errors import OverloadedError


class BodyBudget:
    """Counts the bytes of bodies and of what was made of them. Used by one event loop.

    Attributes:
        held_bytes: By all requests now.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    @contextmanager
    def share(self) -> Iterator[BodyShare]:
        """Give one request its share for the length of the block; it holds nothing at first."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            share.drop()


class BodyShare:
    """What one request holds of a budget.

    Attributes:
        held_bytes: Part of the budget's.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.held_bytes = 0

    def grow(self, num_bytes: int, expected_bytes: int) -> None:
        """Hold so many bytes in all, where the budget has room for what is expected now.

        What is only announced is not held: else a few clients that announce much and send nothing would take it all.

        Raises:
            OverloadedError: It has not; this share holds what it held.
        """
        others_bytes, wanted_bytes = self._budget.held_bytes - self.held_bytes, max(num_bytes, expected_bytes)
        if others_bytes + wanted_bytes > self._budget.limit_bytes:
            raise OverloadedError(
                f"the bodies of other requests hold {others_bytes} bytes, and this one {wanted_bytes} or more; all of "
                f"them may hold {self._budget.limit_bytes}. Retry after a while, or send smaller images."
            )
        self._budget.held_bytes += num_bytes - self.held_bytes
        self.held_bytes = num_bytes

    def drop(self) -> None:
        """Hold nothing more."""
        self._budget.held_bytes -= self.held_bytes
        self.held_bytes = 0
