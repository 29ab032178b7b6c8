"""A bundle is held against a memory by its manifest alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.directory import read_manifest
from bundle.errors import MachineError
from bundle.manifest import Manifest
from serving.fitting import fit, lines, provider_for
from serving.settings import EngineSettings

MIB = 1 << 20


@pytest.fixture
def manifest(smolvlm_bundle: Path) -> Manifest:
    """The tiny model with graphs of 100 MiB each."""
    made = read_manifest(smolvlm_bundle)
    heavy = {name: part.model_copy(update={"weight_bytes": 100 * MIB}) for name, part in made.components.items()}
    return made.model_copy(update={"components": heavy})


def test_every_part_is_told_and_what_is_left(manifest: Manifest) -> None:
    found = fit(manifest, EngineSettings(), 1000 * MIB)
    assert found.fits
    told = "\n".join(lines(found))
    assert "300 MiB" in told
    assert f"{(1000 * MIB - found.budget.total_bytes) / MIB:,.0f} MiB are left" in told


def test_the_most_sequences_are_the_last_number_that_fits(manifest: Manifest) -> None:
    settings = EngineSettings(provider="cuda", max_sequences=1)
    row_bytes = fit(manifest, settings, 1 << 40).budget.cache_bytes
    rest = fit(manifest, settings, 1 << 40).budget.total_bytes - row_bytes
    assert fit(manifest, settings, rest + 5 * row_bytes).most_sequences == 5
    assert fit(manifest, settings, rest + 5 * row_bytes - 1).most_sequences == 4
    too_small = fit(manifest, settings, rest)
    assert (too_small.fits, too_small.most_sequences) == (False, 0)
    assert "not one sequence of this context fits" in "\n".join(lines(too_small))


def test_the_memory_of_this_machine_is_taken_where_none_is_said(manifest: Manifest, monkeypatch) -> None:
    monkeypatch.setattr("serving.fitting.free_for", lambda provider: 123 * MIB if provider == "cpu" else None)
    assert fit(manifest, EngineSettings(), None).memory_bytes == 123 * MIB
    with pytest.raises(MachineError, match="--device-memory 8GiB"):
        fit(manifest, EngineSettings(provider="cuda"), None)


def test_a_bundle_runs_where_it_was_made_for(manifest: Manifest) -> None:
    targets = ("cpu", "cuda", "tensorrt")
    assert [provider_for(manifest.model_copy(update={"target": target})) for target in targets] == [
        "cpu",
        "cuda",
        "cuda",
    ]
