"""The load-time check: every graph, on this machine, against what it computed at export."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bundle.errors import GoldenError
from bundle.golden import GOLDEN, check, load_golden
from bundle.manifest import Manifest, Scheme
from serving.engine.session import Array, Session

logger = logging.getLogger(__name__)

_MAX_RELATIVE = 1e-3
"""Of an fp32 graph's outputs, relative to their largest value: other kernels and thread counts reorder sums."""

_MIN_COSINE: dict[Scheme, float] = {"int8": 0.98, "int8-weight-only": 0.98, "int4": 0.85}
"""Of a quantized graph against its fp32 parent. Far below what a working variant reaches, far above a broken kernel;
how good the variant is, its gates say."""


def check_canary(directory: Path, manifest: Manifest, sessions: dict[str, Session]) -> None:
    """Replay the golden run of every component.

    A bundle exported without a runtime holds no recording; that is logged.

    Raises:
        GoldenError: A graph computes something else here.
    """
    if GOLDEN not in manifest.files:
        logger.warning("%s holds no %s: its graphs are not checked on this machine", directory, GOLDEN)
        return
    for name, recording in load_golden(directory).items():
        session = sessions[name]
        found = session.run(recording.inputs)
        if session.component.scheme == "fp32":
            check(name, recording.outputs, found, max_relative=_MAX_RELATIVE)
        else:
            _check_quantized(name, session.component.scheme, recording.outputs, found)


def _check_quantized(name: str, scheme: Scheme, recorded: dict[str, Array], found: dict[str, Array]) -> None:
    for output, expected in recorded.items():
        cosine = _cosine(expected, found[output])
        if not cosine >= _MIN_COSINE[scheme]:
            raise GoldenError(
                f"{name}: output {output} of the {scheme} graph has cosine {cosine:.4f} with the fp32 parent's, at "
                f"least {_MIN_COSINE[scheme]} is expected. A kernel is broken on this machine; try another provider."
            )


def _cosine(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    a = np.asarray(first, np.float64).ravel()
    b = np.asarray(second, np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
