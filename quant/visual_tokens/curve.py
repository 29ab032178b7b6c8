"""An order of a tile's tokens in which neighbours are near each other, in both directions of the grid."""

from __future__ import annotations

import numpy as np

from quant.visual_tokens.tile import Rows, Tile

_BITS = 16
"""Of a row or column: grids of at most 65,536."""


def along_curve(tile: Tile) -> Rows:
    """Return a tile's rows along the Z-order curve of its grid (Morton, 1966); as they are where it has none.

    Of a grid of even sides, every four that follow one another are a square of 2 x 2.
    """
    if tile.grid is None:
        return np.arange(tile.num_tokens, dtype=np.int64)
    rows, columns = np.divmod(np.arange(tile.num_tokens, dtype=np.int64), tile.grid[1])
    return np.argsort(_spread(rows) << 1 | _spread(columns), kind="stable").astype(np.int64)


def _spread(numbers: Rows) -> Rows:
    """Return numbers with a zero between each two of their bits."""
    spread = np.zeros_like(numbers)
    for bit in range(_BITS):
        spread |= (numbers >> bit & 1) << 2 * bit
    return spread
