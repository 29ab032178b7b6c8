"""Slots of the key/value cache: who owns which, and what they weigh."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from bundle.manifest import DecoderDims
from serving.engine.settings import DEFAULT_CONTEXT_TOKENS, EngineSettings


@dataclass(frozen=True)
class CacheShape:
    """The size of one model's cache: `num_slots` sequences of at most `capacity_tokens` rows each."""

    num_slots: int
    capacity_tokens: int
    bytes_per_token: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all slots; reserved at start, resident as rows are written."""
        return self.num_slots * self.capacity_tokens * self.bytes_per_token

    def __str__(self) -> str:
        """Return the line that is printed at start."""
        return (
            f"{self.num_slots} slots x {self.capacity_tokens} tokens x {self.bytes_per_token} B/token "
            f"= {self.total_bytes / 2**20:.0f} MiB of cache"
        )


def cache_shape(dims: DecoderDims, settings: EngineSettings) -> CacheShape:
    """Return the cache that a model gets on this machine: the asked context, never more than the model's own."""
    wanted = settings.context_tokens or DEFAULT_CONTEXT_TOKENS
    return CacheShape(settings.max_sequences, min(wanted, dims.max_positions), dims.kv_bytes_per_token)


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
