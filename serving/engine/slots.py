"""Slots of the key/value cache: who owns which."""

from __future__ import annotations

import heapq


class SlotPool:
    """Hands out slots, lowest first, so that a decode batch stays a short contiguous range."""

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots))
        self._owned: set[int] = set()

    @property
    def num_free(self) -> int:
        """Slots that nobody owns."""
        return len(self._free)

    def try_take(self) -> int | None:
        """Return the lowest free slot, now owned by the caller; None when all are taken."""
        if not self._free:
            return None
        slot = heapq.heappop(self._free)
        self._owned.add(slot)
        return slot

    def give_back(self, slot: int) -> None:
        """Free a slot.

        Raises:
            ValueError: Nobody owns it: it was given back twice or never taken.
        """
        if slot not in self._owned:
            raise ValueError(f"slot {slot} has no owner; owned are {sorted(self._owned)}")
        self._owned.remove(slot)
        heapq.heappush(self._free, slot)
