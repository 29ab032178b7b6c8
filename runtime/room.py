"""Whether a model fits a device's memory, told before anything of it is there."""

from __future__ import annotations

import logging

from bundle.errors import OutOfMemoryError
from bundle.manifest import Manifest
from devices.nvml import free_bytes
from runtime.cache_shape import CacheShape
from runtime.settings import Provider

logger = logging.getLogger(__name__)

_LIBRARIES_BYTES = 600 << 20
"""CUDA's context, cuBLAS's workspaces and ONNX Runtime's arena before anything runs: an estimate, to be on the safe
side of."""
_ACTIVATIONS_PER_WEIGHT = 0.15
"""Of the weights: what a prompt's chunk and a batch of tiles take while they run, an estimate as well."""


def check_room(manifest: Manifest, shape: CacheShape, provider: Provider) -> None:
    """Check that weights, cache and activations fit what is free of a device; log where nobody knows what is free.

    Raises:
        OutOfMemoryError: They do not.
    """
    if provider == "cpu":
        return
    free = free_bytes()
    if free is None:
        logger.warning(
            "%s: how much memory is free on %s cannot be told; it is found out by trying", manifest.name, provider
        )
        return
    weights = sum(part.weight_bytes for part in manifest.components.values() if part.role != "embed_tokens")
    activations = int(weights * _ACTIVATIONS_PER_WEIGHT) + _LIBRARIES_BYTES
    needed = weights + shape.total_bytes + activations
    if needed > free:
        raise OutOfMemoryError(
            f"{manifest.name} takes about {_mib(needed)} on {provider}, where {_mib(free)} are free: weights "
            f"{_mib(weights)}, cache {_mib(shape.total_bytes)} ({shape.num_slots} slots of {shape.capacity_tokens} "
            f"tokens), activations and libraries about {_mib(activations)}. Lower max_sequences or context_tokens, "
            "take a variant of fewer bits, or end what else uses the device."
        )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
