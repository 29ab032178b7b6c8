"""Which tokens of a row may be drawn: top_k, then top_p, then min_p, in Hugging Face's order; and the draw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.engine.sampling.ranking import largest_ids
from serving.engine.sampling.state import SamplingState

_FIRST_LOOK = 1e-3
"""Of the likeliest token's chance: a nucleus is searched among the tokens above it first, which is seldom in vain."""
_BIN_BITS = 16
"""Of a float32, dropped to sort it into a bin: numbers of one bin differ by at most a hundred and twenty-eighth."""
_BLOCK = 256
"""Numbers that are summed before any of them is looked at."""

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def candidates(weights: Floats, state: SamplingState) -> tuple[Ids | None, Floats]:
    """Return the token ids that may be drawn, None for all of them, and their unnormalised chances.

    Args:
        weights: [V] unnormalised chances of all tokens, the largest 1.
        state: Says what is cut off.
    """
    ids: Ids
    if state.top_k and state.top_k < len(weights):
        [ids] = largest_ids(weights[None], state.top_k)
        ids = _nucleus(ids, weights[ids], state.top_p)
    elif state.top_p < 1:
        ids = _nucleus_of_all(weights, state.top_p)
    elif state.min_p:
        ids = np.flatnonzero(weights >= state.min_p)
    else:
        return None, weights
    kept = weights[ids]
    return (ids[kept >= state.min_p], kept[kept >= state.min_p]) if state.min_p else (ids, kept)


def place_of(weights: Floats, drawn: float) -> int:
    """Return the place at which the running sum of weights passes a share `drawn` in [0, 1) of the whole."""
    starts = np.arange(0, len(weights), _BLOCK)
    before = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    wanted = drawn * before[-1]
    block = min(int(np.searchsorted(before, wanted, side="right")), len(starts) - 1)
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    place = int(
        np.searchsorted(np.cumsum(inside, dtype=np.float64), wanted - (before[block - 1] if block else 0), "right")
    )
    # A sum that rounding left short of what was wanted ends at the last weight that is any.
    return block * _BLOCK + (place if place < len(inside) else int(np.flatnonzero(inside)[-1]))


def _nucleus_of_all(weights: Floats, top_p: float) -> Ids:
    """Return the fewest likeliest tokens that hold a share of the whole mass."""
    mass = top_p * float(weights.sum())
    ids = np.flatnonzero(weights >= _FIRST_LOOK)
    likely = weights[ids]
    held = float(likely.sum())
    if held >= mass:
        return _nucleus(ids, likely, mass / held)
    return _nucleus(np.arange(len(weights)), weights, top_p)


def _nucleus(ids: Ids, weights: Floats, top_p: float) -> Ids:
    """Return the fewest of the largest weights that hold a share of their mass; never none.

    The upper bits of a positive float32 rank it, so that all but the bin in which the share is reached need no sorting.
    """
    bins = weights.view(np.uint32) >> _BIN_BITS
    from_top = np.cumsum(np.bincount(bins, weights)[::-1])
    mass = top_p * from_top[-1]
    steps = min(int(np.searchsorted(from_top, mass)), len(from_top) - 1)
    border = len(from_top) - 1 - steps
    edge = np.flatnonzero(bins == border)
    edge = edge[np.argsort(-weights[edge], kind="stable")]
    above = from_top[steps - 1] if steps else 0.0
    count = int(np.searchsorted(above + np.cumsum(weights[edge], dtype=np.float64), mass)) + 1
    return np.concatenate([ids[bins > border], ids[edge[:count]]])
