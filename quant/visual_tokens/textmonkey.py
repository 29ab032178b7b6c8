"""TextMonkey's filter: tokens that are like no other (Liu et al., arXiv 2403.04473, section 3.3)."""

from __future__ import annotations

import numpy as np

from quant.visual_tokens.tile import Kept, Tile, chosen, highest, unit


def reduce(tile: Tile, quota: int) -> Kept:
    """Return the tokens whose highest cosine with any other token of the tile is lowest.

    The paper hands them as queries to a trained resampler over all tokens; untrained checkpoints have none, and what is
    chosen is read as it is. Copies are alike, so all of them go before any token that has none.
    """
    directions = unit(tile.single)
    likeness = directions @ directions.T
    np.fill_diagonal(likeness, -np.inf)
    return chosen(tile, highest(-likeness.max(axis=1), quota))
