"""The load-time check: every graph, on this machine, against what it computed at export."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bundle.errors import GoldenError
from bundle.golden import GOLDEN, check, load_golden, recording_of
from bundle.manifest import Manifest, Scheme
from runtime.session import Array, Session

logger = logging.getLogger(__name__)

_MAX_RELATIVE = 1e-3
"""Of an fp32 graph's outputs, relative to their largest value: other kernels and thread counts reorder sums."""

_GATE = "canary_cosine/{component}"
_MIN_COSINE = 0.3
"""Of a quantized graph against its fp32 parent, where the manifest has no gate for it: wrong nibbles fall near 0. How
good a variant is, its gates say; this tells a broken kernel from a working one."""


def check_canary(directory: Path, manifest: Manifest, sessions: dict[str, Session]) -> None:
    """Replay the golden run of every component.

    A bundle exported without a runtime holds no recording; that is logged.

    Raises:
        GoldenError: A graph computes something else here.
        BundleFileError: The recording lacks a graph's run.
    """
    if GOLDEN not in manifest.files:
        logger.warning("%s holds no %s: its graphs are not checked on this machine", directory, GOLDEN)
        return
    recordings = load_golden(directory)
    for name, session in sessions.items():
        recording = recording_of(name, recordings, directory)
        found = session.run(recording.inputs)
        if session.component.scheme == "fp32":
            check(name, recording.outputs, found, max_relative=_MAX_RELATIVE)
        else:
            _check_quantized(name, session.component.scheme, _min_cosine(manifest, name), recording.outputs, found)


def _min_cosine(manifest: Manifest, component: str) -> float:
    """Return the limit that the variant was held to when it was made."""
    name = _GATE.format(component=component)
    return next((gate.limit for gate in manifest.gates if gate.name == name), _MIN_COSINE)


def _check_quantized(
    name: str, scheme: Scheme, min_cosine: float, recorded: dict[str, Array], found: dict[str, Array]
) -> None:
    for output, expected in recorded.items():
        cosine = _cosine(expected, found[output])
        if not cosine >= min_cosine:
            raise GoldenError(
                f"{name}: output {output} of the {scheme} graph has cosine {cosine:.4f} with the fp32 parent's, at "
                f"least {min_cosine} is expected. A kernel is broken on this machine; try another provider."
            )


def _cosine(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    a = np.asarray(first, np.float64).ravel()
    b = np.asarray(second, np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
