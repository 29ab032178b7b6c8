"""Means over neighbours in the grid."""

from __future__ import annotations

import numpy as np

from quant.visual_tokens.curve import along_curve
from quant.visual_tokens.tile import Kept, Tile, merged


def reduce(tile: Tile, quota: int) -> Kept:
    """Return means of stretches of the curve of `curve.along_curve`: stretch i from floor(i P / quota) on.

    A quarter of a grid of even sides is average pooling of 2 x 2 with stride 2; other shares, for which pooling has no
    rectangle, have stretches whose lengths differ by at most one.
    """
    groups = np.empty(tile.num_tokens, np.int64)
    groups[along_curve(tile)] = np.arange(tile.num_tokens, dtype=np.int64) * quota // tile.num_tokens
    return merged(tile, groups)
