"""Ternary: every weight of a block is -a, 0 or a, as the codes 1, 2 and 3 of two bits.

For a given number k of weights that are not 0, the best are the k largest and the best a is their mean magnitude s / k;
the squared error is then the block's energy less s^2 / k. Sorting once and trying every k is exact: no threshold is
guessed and nothing is iterated. A block that is ternary already is reproduced bit for bit, because sums of equal
float32 numbers are exact in float64.
"""

from __future__ import annotations

import numpy as np

from graphs.layers import Float32
from quant.rounding.blockwise import Blockwise
from quant.rounding.grid import StepGrid

BITS = 2
LOWEST = 1
"""Codes 1, 2, 3 are used; 0, which would be -2, is not."""


def best_scales(blocks: Float32) -> Float32:
    """Return the a of least squared error for each block [R, n]: [R, 1] float32, 0 where all weights are."""
    largest_first = np.sort(np.abs(blocks), axis=1)[:, ::-1]
    sums = np.cumsum(largest_first, axis=1, dtype=np.float64)
    counts = np.arange(1, blocks.shape[1] + 1)
    best = (np.square(sums) / counts).argmax(axis=1)[:, None]
    scales: Float32 = (np.take_along_axis(sums, best, axis=1) / counts[best]).astype(np.float32)
    return scales


def fit_optimal(blocks: Float32, bits: int) -> StepGrid:
    """Return the ternary grids of least squared error."""
    return StepGrid(best_scales(blocks), bits, lowest=LOWEST)


round_to_ternary = Blockwise(fit_optimal, widths=(BITS,))
