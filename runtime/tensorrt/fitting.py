"""Whether what engines are built for fits the memory of the device that they are built for."""

from __future__ import annotations

from bundle.errors import SettingsError
from bundle.manifest import Manifest
from runtime.cache_shape import cache_shape
from runtime.room import budget_of, mib
from runtime.tensorrt.profiles import Limits


def check_fit(manifest: Manifest, limits: Limits, memory_bytes: int) -> None:
    """Check that weights, the largest cache that engines take, and what runs need, fit a memory.

    Raises:
        SettingsError: They do not; the message says which cache would.
    """
    shape = None if manifest.decoder is None else cache_shape(manifest, limits.max_batch, limits.cache_rows)
    budget = budget_of(manifest, shape, "cuda")
    if budget.total_bytes <= memory_bytes:
        return
    left = memory_bytes - (budget.total_bytes - budget.cache_bytes)
    rows = 0 if shape is None else left // (limits.max_batch * shape.bytes_per_token or 1)
    advice = (
        f"With --max-batch {limits.max_batch}, --cache-rows {rows} fit"
        if rows > 0
        else "Without any cache it does not fit either: take a variant of fewer bits"
    )
    raise SettingsError(
        f"a server of {manifest.name} takes about {mib(budget.total_bytes)} of {mib(memory_bytes)}: {budget}. {advice}"
    )
