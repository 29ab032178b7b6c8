"""A variant's graphs on the canary that its parent was recorded with at export."""

from __future__ import annotations

from dataclasses import dataclass

from bundle.directory import Bundle
from bundle.golden import compare
from bundle.manifest import ComponentName
from quant.quality.measures import cosines
from runtime.canary import replayed
from runtime.encoder import open_graph
from runtime.settings import RuntimeSettings


@dataclass(frozen=True)
class Parity:
    """How near one graph comes to what was recorded.

    Attributes:
        cosine: Lowest over the outputs, each taken as one vector.
        max_abs: Largest over the outputs.
    """

    cosine: float
    max_abs: float


def canary_parity(bundle: Bundle, settings: RuntimeSettings) -> dict[ComponentName, Parity]:
    """Return the parity of every graph of a bundle.

    Raises:
        BundleFileError: The recording is missing, damaged, or lacks a component.
    """
    found: dict[ComponentName, Parity] = {}
    opened = ((name, open_graph(bundle, name, settings)) for name in bundle.manifest.components)  # one at a time
    for name, recording, outputs in replayed(bundle, opened):
        expected = recording.outputs
        found[name] = Parity(
            cosine=min(float(cosines(expected[key].ravel(), outputs[key].ravel())) for key in expected),
            max_abs=max(compare(expected[key], outputs[key]).absolute for key in expected),
        )
    return found
