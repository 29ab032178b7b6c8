"""Tokens merged with their likes, round after round (AIM, first half; Zhong et al., arXiv 2412.03248, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quant.visual_tokens.tile import Float32, Kept, Rows, Tile, group_sums, highest, unit


@dataclass(frozen=True)
class _Tokens:
    """What is left after some rounds; the fields are those of `Kept`."""

    features: Float32
    rows: Rows
    sizes: Rows


def reduce(tile: Tile, quota: int) -> Kept:
    """Return tokens merged by cosine until so many are left.

    A round takes the tokens of even and of odd place apart, finds for each even one the odd one most like it, and
    merges the likeliest pairs: half of all tokens at most (bipartite soft matching; Bolya et al., arXiv 2210.09461,
    section 3). Several may go to one. What is merged is the mean over all tokens in it, in the odd one's place.

    The paper halves twice, to a quarter, and takes the mean of the two without their sizes; ours goes to any share,
    and the sum of size times feature stays what it was.
    """
    ones = np.ones(tile.num_tokens, np.int64)
    tokens = _Tokens(tile.single, np.arange(tile.num_tokens, dtype=np.int64), ones)
    while len(tokens.rows) > quota:
        tokens = _round(tokens, min(len(tokens.rows) - quota, len(tokens.rows) // 2))
    features = np.where(tokens.sizes[:, None] > 1, tokens.features, tile.single[tokens.rows])
    return Kept(features.astype(tile.features.dtype), tokens.rows, tokens.sizes)


def _round(tokens: _Tokens, num_merged: int) -> _Tokens:
    """Return the tokens with so many merged into others."""
    places = np.arange(len(tokens.rows))
    even, odd = places[0::2], places[1::2]
    directions = unit(tokens.features)
    likeness = directions[even] @ directions[odd].T
    going = highest(likeness.max(axis=1), num_merged)
    targets = odd[likeness[going].argmax(axis=1)]
    weighted = tokens.features * tokens.sizes[:, None].astype(np.float32)
    gone = even[going]
    sums = weighted + group_sums(weighted[gone], targets, len(places))
    sizes = tokens.sizes + np.bincount(targets, tokens.sizes[gone], len(places)).astype(np.int64)
    left = np.delete(places, gone)
    means = (sums[left] / sizes[left, None]).astype(np.float32)
    return _Tokens(means, tokens.rows[left], sizes[left])
