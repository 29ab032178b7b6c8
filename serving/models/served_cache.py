"""The cache that a bundle is served with: from its manifest and the settings alone, so that a card can tell of it."""

from __future__ import annotations

from bundle.errors import SettingsError
from bundle.manifest import Manifest
from runtime.cache_shape import CacheShape, cache_shape, context_of, within
from serving.settings import EngineSettings

_SPARE_SLOTS = 8
"""Prompts that are kept beside the seats; on the host such a slot takes addresses until rows are copied to it."""


def served_cache(manifest: Manifest, settings: EngineSettings) -> CacheShape | None:
    """Return the cache of a model; None without a decoder.

    Raises:
        SettingsError: The settings ask for more than the model holds, or than the memory that they allow.
    """
    context_tokens = context_of(manifest, settings.context_tokens)
    if context_tokens is None:
        return None
    whole = cache_shape(manifest, settings.max_sequences, context_tokens)
    num_spare = _SPARE_SLOTS if settings.prefix_cache and (whole.has_snapshots or not whole.bytes_per_slot) else 0
    shape = within(whole, settings.kv_memory_bytes, num_spare, settings.provider)
    if settings.context_tokens is not None and shape.capacity_tokens < settings.context_tokens:
        wanted_bytes = settings.context_tokens * shape.bytes_per_token
        raise SettingsError(
            f"context_tokens {settings.context_tokens} takes {wanted_bytes} bytes of {manifest.name}'s cache; "
            f"kv_memory_bytes {settings.kv_memory_bytes} holds {shape.capacity_tokens} tokens. Lower the one or raise "
            "the other."
        )
    return shape
