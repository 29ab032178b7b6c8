"""What a model's cache weighs: slots, their length, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from bundle.manifest import DecoderDims
from runtime.settings import DEFAULT_CONTEXT_TOKENS, EngineSettings


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
