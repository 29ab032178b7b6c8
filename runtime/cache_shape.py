"""What a model's states weigh: slots, their length, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from bundle.errors import SettingsError
from bundle.manifest import Manifest
from runtime.settings import DEFAULT_CONTEXT_TOKENS


@dataclass(frozen=True)
class CacheShape:
    """The size of one model's cache: `num_slots` sequences of at most `capacity_tokens` rows each.

    Attributes:
        num_slots: Sequences.
        capacity_tokens: Rows of a slot.
        bytes_per_token: Of one row over all states that have rows.
        bytes_per_slot: Of a slot's states of fixed size.
    """

    num_slots: int
    capacity_tokens: int
    bytes_per_token: int
    bytes_per_slot: int = 0

    @property
    def total_bytes(self) -> int:
        """Bytes of all slots; reserved at start, resident as rows are written."""
        return self.num_slots * (self.capacity_tokens * self.bytes_per_token + self.bytes_per_slot)

    def __str__(self) -> str:
        """Return the line that is printed at start."""
        fixed = f" and {self.bytes_per_slot} B" if self.bytes_per_slot else ""
        return (
            f"{self.num_slots} slots x {self.capacity_tokens} tokens x {self.bytes_per_token} B/token{fixed} "
            f"= {self.total_bytes / 2**20:.0f} MiB of cache"
        )


def context_of(manifest: Manifest, wanted_tokens: int | None) -> int | None:
    """Return the rows of a slot; None without a decoder.

    Args:
        manifest: Whose decoder it is.
        wanted_tokens: None: the default, or all that the model holds where that is less.

    Raises:
        SettingsError: More are wanted than the model holds.
    """
    if manifest.decoder is None:
        return None
    limit = manifest.decoder.max_positions
    if wanted_tokens is None:
        return min(DEFAULT_CONTEXT_TOKENS, limit)
    if wanted_tokens > limit:
        raise SettingsError(
            f"context_tokens {wanted_tokens} is more than {manifest.name} holds, {limit}. Ask for {limit} or less."
        )
    return wanted_tokens


def cache_shape(manifest: Manifest, num_slots: int, capacity_tokens: int) -> CacheShape:
    """Return the cache of a model with so many slots of so many rows."""
    return CacheShape(num_slots, capacity_tokens, manifest.state_bytes_per_token, manifest.state_bytes_per_sequence)
