"""Whether a model fits a memory, told with every number before anything of it is there."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bundle.errors import OutOfMemoryError
from bundle.manifest import Manifest
from devices.board import is_jetson
from devices.memory import available_bytes
from devices.nvml import free_bytes
from runtime.cache_shape import CacheShape
from runtime.captured_runs import captured_bytes
from runtime.settings import Provider

logger = logging.getLogger(__name__)

_LIBRARIES_BYTES: dict[Provider, int] = {"cpu": 150 << 20, "cuda": 600 << 20}
"""Before anything runs. CUDA: its context, cuBLAS's workspaces and ONNX Runtime's arena, an estimate, to be on the safe
side of. CPU: Python, ONNX Runtime and the server; 110 to 120 MiB were measured beside the weights of models of 16 to
980 MiB."""
_ACTIVATIONS_PER_WEIGHT = 0.15
"""Of the weights: what a prompt's chunk and a batch of tiles take while they run, an estimate as well."""
_LEAST_ACTIVATIONS_BYTES: dict[Provider, int] = {"cpu": 96 << 20, "cuda": 0}
"""On a CPU, where small weights are repacked too: variants of SmolVLM-256M's sizes took 75 to 120 MiB."""
_BUILD_PER_WEIGHT = 3
_BUILD_BYTES = 280 << 20
"""What TensorRT-RTX 1.7 took at most while it built the engines of a bundle on a CPU: 1,590 MiB for 490 of weights,
1,090 for 350, 300 for 8. TensorRT on a board was never measured."""


@dataclass(frozen=True)
class Budget:
    """What a model takes of a memory.

    Attributes:
        weights_bytes: As stored.
        cache_bytes: When every row of it holds something.
        activations_bytes: While it runs, an estimate.
        captured_bytes: Inputs and outputs of runs that are captured, on a device.
        libraries_bytes: Without any model, an estimate.
        host_bytes: Beside all that, in the host's memory, of a model that runs on a device: the token table and the
            process. A Jetson's memory is the host's and the device's in one, and has to hold it too.
        is_shared: The memory is one, of host and device.
        build_bytes: While its TensorRT engines are built there, an estimate; over by the time that it serves.
        cache: In words; empty without a cache.
    """

    weights_bytes: int
    cache_bytes: int
    activations_bytes: int
    libraries_bytes: int
    build_bytes: int
    cache: str = ""
    captured_bytes: int = 0
    host_bytes: int = 0
    is_shared: bool = False

    @property
    def total_bytes(self) -> int:
        """Of a server at work."""
        beside = self.activations_bytes + self.captured_bytes + self.libraries_bytes
        return self.weights_bytes + self.cache_bytes + beside + (self.host_bytes if self.is_shared else 0)

    @property
    def peak_bytes(self) -> int:
        """The most of it at any time, the building of engines included."""
        return max(self.total_bytes, self.build_bytes)

    def __str__(self) -> str:
        """Return every part with its number."""
        cache = f"cache {mib(self.cache_bytes)} ({self.cache}), " if self.cache else ""
        captured = f"captured runs {mib(self.captured_bytes)}, " if self.captured_bytes else ""
        host = f", token table and process about {mib(self.host_bytes)}" if self.is_shared else ""
        return (
            f"weights {mib(self.weights_bytes)}, {cache}{captured}activations and libraries about "
            f"{mib(self.activations_bytes + self.libraries_bytes)}{host}"
        )


def budget_of(manifest: Manifest, shape: CacheShape | None, provider: Provider) -> Budget:
    """Return what a model takes of the memory that its graphs run in.

    Args:
        manifest: Of the bundle.
        shape: Of its cache; None without a decoder.
        provider: Where it runs. On a device the token table stays on the host.
    """
    is_device = provider != "cpu"
    parts = manifest.components.values()
    tables = sum(part.weight_bytes for part in parts if is_device and part.role == "embed_tokens")
    weights = sum(part.weight_bytes for part in parts) - tables
    return Budget(
        weights_bytes=weights,
        cache_bytes=0 if shape is None else shape.total_bytes,
        activations_bytes=max(int(weights * _ACTIVATIONS_PER_WEIGHT), _LEAST_ACTIVATIONS_BYTES[provider]),
        libraries_bytes=_LIBRARIES_BYTES[provider],
        build_bytes=weights * _BUILD_PER_WEIGHT + _BUILD_BYTES if manifest.dialect == "portable" else 0,
        cache="" if shape is None else _told(shape),
        captured_bytes=0 if shape is None or not is_device else captured_bytes(manifest, shape),
        host_bytes=tables + _LIBRARIES_BYTES["cpu"] if is_device else 0,
        is_shared=is_device and is_jetson(),
    )


def free_for(provider: Provider) -> int | None:
    """Return what is free where graphs of a provider run; None where nobody says.

    A Jetson's GPU takes the machine's memory, and its driver does not tell of it as other drivers do.
    """
    if provider == "cpu":
        return available_bytes()
    free = free_bytes()
    return available_bytes() if free is None and is_jetson() else free


def check_room(manifest: Manifest, shape: CacheShape | None, provider: Provider) -> None:
    """Check that a model fits what is free; log where it may not, or where nobody knows what is free.

    A device takes weights and cache whole at start: what does not fit is refused. On the host only the weights are
    certain, for a cache becomes resident as rows are written: they are refused, and what they leave too little for is
    told.

    Raises:
        OutOfMemoryError: It does not fit.
    """
    free = free_for(provider)
    if free is None:
        if provider != "cpu":
            logger.warning(
                "%s: how much memory is free on %s cannot be told; it is found out by trying", manifest.name, provider
            )
        return
    budget = budget_of(manifest, shape, provider)
    told = f"{manifest.name} takes about {mib(budget.total_bytes)} on {provider}, where {mib(free)} are free: {budget}"
    if (budget.total_bytes if provider != "cpu" else budget.weights_bytes) > free:
        raise OutOfMemoryError(
            f"{told}. Lower max_sequences or context_tokens, take a variant of fewer bits, or end what else uses the "
            "memory."
        )
    if budget.total_bytes > free:
        logger.warning(
            "%s. It is served; when that much is asked for, the system swaps or ends it. Lower max_sequences, "
            "context_tokens or kv_memory_bytes, or take a variant of fewer bits",
            told,
        )


def _told(shape: CacheShape) -> str:
    rows = "" if shape.budget_rows is None else f", {shape.budget_rows:,} rows together"
    return f"{shape.num_slots} slots of {shape.capacity_tokens} tokens{rows}"


def mib(num_bytes: int) -> str:
    """Return a number of bytes in mebibytes, as messages say it."""
    return f"{num_bytes / 2**20:,.0f} MiB"
