"""VisionZip: dominant tokens, and contextual ones for the rest (Yang et al., arXiv 2412.04467, section 3.2)."""

from __future__ import annotations

import numpy as np

from quant.visual_tokens.fastervlm import view_of
from quant.visual_tokens.tile import Features, Kept, Rows, Tile, chosen, group_sums, highest, unit

_CONTEXTUAL_SHARE = 10, 64
"""Contextual tokens of all that are kept: 10 of 64, 20 of 128, 30 of 192 in the paper; rounded down."""


def reduce(tile: Tile, quota: int) -> Kept:
    """Return the tokens that receive most attention, and a few that stand for all others.

    Of the others, in order, every floor(n / contextual)-th is a target; each of the rest goes to the target whose key
    (mean over heads) has the highest cosine with its own. What is read is *target plus the mean of what went to it*,
    as the authors' code has it: twice as long as a token where something went to it.

    The paper does so before the connector; here it is behind it, which is the same for a linear one. The class token,
    which it keeps beside the dominant ones, is not among what decoders read here.
    """
    view = view_of(tile)
    num_contextual = quota * _CONTEXTUAL_SHARE[0] // _CONTEXTUAL_SHARE[1]
    dominant = highest(view.received, quota - num_contextual)
    if not num_contextual:
        return chosen(tile, dominant)
    others = np.setdiff1d(np.arange(tile.num_tokens), dominant)
    targets, added, counts = _contextual(tile, others, num_contextual)
    rows = np.concatenate([dominant, targets])
    features = np.concatenate([tile.features[dominant], (tile.single[targets] + added).astype(tile.features.dtype)])
    sizes = np.concatenate([np.ones(len(dominant), np.int64), 1 + counts])
    order = np.argsort(rows)
    return Kept(features[order], rows[order], sizes[order])


def _contextual(tile: Tile, others: Rows, num: int) -> tuple[Rows, Features, Rows]:
    """Return targets among the other tokens, the mean of what goes to each [num, D], and how many do."""
    targets = others[:: max(len(others) // num, 1)][:num]
    rest = np.setdiff1d(others, targets)
    keys = unit(view_of(tile).keys)
    nearest = (keys[rest] @ keys[targets].T).argmax(axis=1)
    sums = group_sums(tile.single[rest], nearest, num)
    counts = np.bincount(nearest, minlength=num)
    return targets, sums / np.maximum(counts, 1)[:, None].astype(np.float32), counts
