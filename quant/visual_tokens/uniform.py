"""Tokens spread evenly over the grid: the other thing that every method has to beat."""

from __future__ import annotations

import numpy as np

from quant.visual_tokens.curve import along_curve
from quant.visual_tokens.tile import Kept, Tile, chosen


def reduce(tile: Tile, quota: int) -> Kept:
    """Return every P/quota-th token along the curve of `curve.along_curve`: number floor((i + 1/2) P / quota).

    A quarter of a grid of even sides is one token of every square of 2 x 2.
    """
    places = (2 * np.arange(quota, dtype=np.int64) + 1) * tile.num_tokens // (2 * quota)
    return chosen(tile, along_curve(tile)[places])
