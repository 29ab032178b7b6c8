"""How near two inputs are by their vectors: one each, or one for every token."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bundle.errors import ParameterError

Vectors = npt.NDArray[np.float32]


def similarity(first: Vectors, second: Vectors) -> float:
    """Return the dot product of two vectors [E], or the late interaction of two inputs' vectors [m, E] and [n, E].

    Late interaction (Khattab and Zaharia, arXiv 2004.12832, section 3.3): each vector of the first input counts by the
    nearest one of the second, and the sum over all of the first is the score. It is not the same in both directions:
    the first is the query.

    Raises:
        ParameterError: One has a vector and the other several, or the vectors differ in size.
    """
    if first.ndim != second.ndim:
        several = first if first.ndim > 1 else second
        raise ParameterError(
            f"one input has a single vector and the other {len(several)}, one for each token: they cannot be compared. "
            "Take both from one model"
        )
    if first.shape[-1] != second.shape[-1]:
        raise ParameterError(
            f"vectors of {first.shape[-1]} and of {second.shape[-1]} numbers cannot be compared; take both from one "
            "model, of one size"
        )
    return float(first @ second) if first.ndim == 1 else float((first @ second.T).max(axis=1).sum())
