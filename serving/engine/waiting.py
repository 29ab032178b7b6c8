"""Sequences that wait for a slot, in the order in which they get one."""

from __future__ import annotations

from bisect import insort
from itertools import count

from serving.engine.sequence import Sequence

PRIORITY_STEP_S = 10.0
"""A request waits before those of the next lower priority, unless they came so much earlier: none waits for ever."""


class Waiting:
    """First come, first served among equals; a priority is worth a start. Who lost a slot has its old place again."""

    def __init__(self) -> None:
        self._queue: list[Sequence] = []
        self._arrivals = count()
        self._places: dict[Sequence, tuple[float, int]] = {}

    def __bool__(self) -> bool:
        """Return whether any sequence waits."""
        return bool(self._queue)

    def __contains__(self, sequence: Sequence) -> bool:
        """Return whether a sequence waits."""
        return sequence in self._queue

    @property
    def all(self) -> tuple[Sequence, ...]:
        """All that wait, as of now."""
        return tuple(self._queue)

    @property
    def first(self) -> Sequence:
        """The one whose turn it is."""
        return self._queue[0]

    def first_ones(self, most: int) -> list[Sequence]:
        """Return so many at most, in their order; callable from any thread."""
        return self._queue[:most]

    def place(self, sequence: Sequence) -> tuple[float, int]:
        """Return where a sequence stands that waits or has waited: the smaller, the earlier."""
        return self._places[sequence]

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        if sequence not in self._places:
            due_s = sequence.submitted_s + sequence.priority * PRIORITY_STEP_S
            self._places[sequence] = due_s, next(self._arrivals)
        insort(self._queue, sequence, key=self.place)

    def take(self) -> Sequence:
        """Take the one whose turn it is out of the queue."""
        return self._queue.pop(0)

    def forget(self, sequence: Sequence) -> bool:
        """Forget a sequence for good; False where it did not wait."""
        self._places.pop(sequence, None)
        if sequence not in self._queue:
            return False
        self._queue.remove(sequence)
        return True

    def late(self, now_s: float) -> list[Sequence]:
        """Return the sequences whose deadline has passed while they wait; one that was begun goes on."""
        return [each for each in self._queue if each.cached_tokens is None and each.deadline_s <= now_s]
