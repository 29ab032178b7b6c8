"""Whether a bundle fits a memory as it would be served: from its manifest alone, on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bundle.errors import MachineError
from bundle.manifest import Manifest
from runtime.room import Budget, budget_of, free_for, mib
from runtime.settings import Provider
from serving.models.served_cache import served_cache
from serving.settings import EngineSettings

_MOST_SEQUENCES = 256


@dataclass(frozen=True)
class Fit:
    """A bundle held against a memory.

    Attributes:
        name: The model's.
        provider: Where it would run.
        memory_bytes: That it may take.
        budget: What it takes.
        max_sequences: As it was asked.
        most_sequences: That fit with the same context; 0 where not one does; None without a cache.
    """

    name: str
    provider: Provider
    memory_bytes: int
    budget: Budget
    max_sequences: int
    most_sequences: int | None

    @property
    def fits(self) -> bool:
        """Whether all of it fits."""
        return self.budget.total_bytes <= self.memory_bytes


def provider_for(manifest: Manifest) -> Provider:
    """Return where a bundle would run, by what it was made for."""
    return "cpu" if manifest.target == "cpu" else "cuda"


def fit(manifest: Manifest, settings: EngineSettings, memory_bytes: int | None) -> Fit:
    """Return whether a bundle fits.

    Args:
        manifest: Of the bundle.
        settings: Slots, context, provider.
        memory_bytes: That it may take; None: what is free on this machine.

    Raises:
        SettingsError: The settings ask for more than the model holds.
        MachineError: Nobody says what is free here.
    """
    if memory_bytes is None:
        memory_bytes = free_for(settings.provider)
    if memory_bytes is None:
        raise MachineError(f"what is free on {settings.provider} cannot be told here; say it with --device-memory 8GiB")
    budget = budget_of(manifest, served_cache(manifest, settings), settings.provider)
    most = None if manifest.decoder is None else _most_sequences(manifest, settings, memory_bytes)
    return Fit(manifest.name, settings.provider, memory_bytes, budget, settings.max_sequences, most)


def lines(found: Fit) -> Iterator[str]:
    """Yield what to print of it."""
    budget = found.budget
    yield f"{found.name} on {found.provider}, {mib(found.memory_bytes)} of memory for it"
    yield f"  weights                    {mib(budget.weights_bytes):>12}"
    if budget.cache:
        yield f"  cache                      {mib(budget.cache_bytes):>12}  {budget.cache}"
    if budget.captured_bytes:
        yield f"  captured runs              {mib(budget.captured_bytes):>12}"
    yield f"  activations, about         {mib(budget.activations_bytes):>12}"
    yield f"  libraries, about           {mib(budget.libraries_bytes):>12}"
    if budget.is_shared:
        yield f"  table and process, about   {mib(budget.host_bytes):>12}"
    yield f"  together                   {mib(budget.total_bytes):>12}"
    if budget.build_bytes:
        verdict = (
            "" if budget.build_bytes <= found.memory_bytes else "  more than there is: build elsewhere, or add swap"
        )
        yield f"  building engines, about    {mib(budget.build_bytes):>12}{verdict}"
    if budget.host_bytes and not budget.is_shared:
        yield f"  in the host's memory, about{mib(budget.host_bytes):>12}  a Jetson's is the same: add it there"
    if found.fits:
        yield f"fits: {mib(found.memory_bytes - budget.total_bytes)} are left"
    else:
        yield f"does not fit: {mib(budget.total_bytes - found.memory_bytes)} are missing"
    if found.most_sequences is not None and found.most_sequences != found.max_sequences:
        yield (
            f"with this context at most {found.most_sequences} sequences fit (--max-sequences)"
            if found.most_sequences
            else "not one sequence of this context fits; lower --context-tokens, or take a variant of fewer bits"
        )


def _most_sequences(manifest: Manifest, settings: EngineSettings, memory_bytes: int) -> int:
    """Return the most sequences that fit, with the rest of the settings as it is."""
    for number in range(_MOST_SEQUENCES, 0, -1):
        shape = served_cache(manifest, settings.model_copy(update={"max_sequences": number}))
        if budget_of(manifest, shape, settings.provider).total_bytes <= memory_bytes:
            return number
    return 0
