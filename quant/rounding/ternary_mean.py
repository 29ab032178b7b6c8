"""Ternary about a mean: weight = a * t + m with t in -1, 0, 1 and an m of each block.

The iteration of PT2-LLM (arXiv 2510.03267, section 3.2): for fixed t, (a, m) is the line of least squares through the
points (t, w); for fixed (a, m), t is the nearest. Neither step can raise the squared error. We start from the block's
mean and the optimal a about it, where the paper starts from a threshold.

The m costs 32 bits a block and a small product of block sums in the graph. Four equal levels (`four_level`) cost
neither and err less on weights that are roughly Gaussian.
"""

from __future__ import annotations

import numpy as np

from graphs.layers import Float32
from quant.rounding.blockwise import Blockwise
from quant.rounding.grid import StepGrid
from quant.rounding.ternary import BITS, LOWEST, best_scales

_TURNS = 20  # Gaussian blocks of 128 stand still after about 10


def fit_ternary_mean(blocks: Float32, bits: int) -> StepGrid:
    """Return the grid a * t + m of each block [R, n]."""
    offsets = blocks.mean(axis=1, keepdims=True)
    grid = StepGrid(best_scales(blocks - offsets), bits, offsets=offsets, lowest=LOWEST)
    for _ in range(_TURNS):
        grid = refined(grid, blocks)
    return grid


def refined(grid: StepGrid, blocks: Float32) -> StepGrid:
    """Return the grids of least squared error for the t that `grid` gives its weights."""
    if grid.offsets is None:
        return grid
    trits = grid.encode(blocks).codes.astype(np.float32) - np.float32(2)
    count = np.float32(blocks.shape[1])
    sum_t, sum_tt = trits.sum(axis=1, keepdims=True), np.square(trits).sum(axis=1, keepdims=True)
    sum_w, sum_wt = blocks.sum(axis=1, keepdims=True), (blocks * trits).sum(axis=1, keepdims=True)
    spread = count * sum_tt - np.square(sum_t)  # an integer; 0 where all t of a block are equal
    is_line = spread > 0
    scales = np.divide(count * sum_wt - sum_t * sum_w, spread, out=grid.scales.copy(), where=is_line)
    offsets = np.divide(sum_tt * sum_w - sum_t * sum_wt, spread, out=grid.offsets.copy(), where=is_line)
    return StepGrid(scales, grid.bits, offsets=offsets, lowest=LOWEST)


round_about_mean = Blockwise(fit_ternary_mean, widths=(BITS,))
