"""A variant's graphs on the canary that its parent was recorded with at export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bundle.golden import compare, load_golden, recording_of
from bundle.manifest import Component, ComponentName
from quant.quality.measures import cosines
from runtime.one_request import Graph


@dataclass(frozen=True)
class Parity:
    """How near one graph comes to what was recorded.

    Attributes:
        cosine: Lowest over the outputs, each taken as one vector.
        max_abs: Largest over the outputs.
    """

    cosine: float
    max_abs: float


def canary_parity(directory: Path, components: Mapping[ComponentName, Component]) -> dict[ComponentName, Parity]:
    """Return the parity of every graph of a bundle with `golden.npz` in it.

    Raises:
        BundleFileError: The recording is missing, damaged, or lacks a component.
    """
    recordings = load_golden(directory)
    found: dict[ComponentName, Parity] = {}
    for name, component in components.items():
        recording = recording_of(name, recordings, directory)
        outputs = Graph(directory / component.file).run(recording.inputs)
        expected = recording.outputs
        found[name] = Parity(
            cosine=min(float(cosines(expected[key].ravel(), outputs[key].ravel())) for key in expected),
            max_abs=max(compare(expected[key], outputs[key]).absolute for key in expected),
        )
    return found
