"""Round to nearest: the grid of a block is set by its weight of largest magnitude, and nothing is calibrated.

The scale is that weight, sign kept, over -2^(bits-1): it lands on code 0 exactly and no code is wasted. ONNX Runtime's
own quantizer does the same. TensorRT takes no negative scales; for it the largest weight lands on the last code of its
own side, or is cut to it where that moves the block's weights less.
"""

from __future__ import annotations

import numpy as np

from graphs.layers import Float32
from quant.rounding.block_codes import zero_code
from quant.rounding.blockwise import Blockwise
from quant.rounding.grid import StepGrid


def fit_peak(blocks: Float32, bits: int) -> StepGrid:
    """Return the grids whose outermost value is each block's weight of largest magnitude."""
    return StepGrid(_peaks(blocks) / np.float32(-zero_code(bits)), bits)


def fit_positive(blocks: Float32, bits: int) -> StepGrid:
    """Return grids of positive scale: that of `fit_peak` where its scale is positive, else the better of two.

    A positive peak p can lie on the last code, with steps of p / (2^(bits-1) - 1), or be cut by one step of
    p / 2^(bits-1). The smaller sum of squared errors wins.
    """
    peaks, zero = _peaks(blocks), zero_code(bits)
    fine = np.asarray(np.abs(peaks) / zero, np.float32)
    coarse = np.asarray(peaks / (zero - 1), np.float32)
    keeps_peak = (peaks > 0) & (_squared_error(blocks, coarse, bits) < _squared_error(blocks, fine, bits))
    return StepGrid(np.where(keeps_peak, coarse, fine), bits)


def fit_range(blocks: Float32, bits: int, steps: Float32 | None = None) -> StepGrid:
    """Return grids with zero points, from a block's smallest weight (or 0) to its largest (or 0).

    Each block's range is also tried somewhat narrower, and the one of the smallest squared error is taken.

    Args:
        blocks: [R, n] float32.
        bits: Per code.
        steps: [R, 1] float32: scales are 1 to 255 of these; None: scales are any numbers.
    """
    top = np.maximum(blocks.max(axis=1, keepdims=True), 0)
    bottom = np.minimum(blocks.min(axis=1, keepdims=True), 0)
    last = (1 << bits) - 1
    best: StepGrid | None = None
    for share in _RANGE_SHARES:
        scales = np.asarray((top - bottom) * share / last, np.float32)
        if steps is not None:
            scales = np.asarray(np.clip(np.rint(scales / steps), 1, MOST_STEPS) * steps, np.float32)
        zeros = np.divide(-bottom * share, scales, out=np.zeros_like(scales), where=scales != 0)
        grid = StepGrid(scales, bits, np.clip(np.rint(zeros), 0, last).astype(np.uint8))
        best = grid if best is None else _better(blocks, best, grid)
    return best if best is not None else fit_peak(blocks, bits)


def _better(blocks: Float32, one: StepGrid, other: StepGrid) -> StepGrid:
    """Return, block by block, the grid of the smaller sum of squared errors."""
    errors = [np.square(grid.encode(blocks).weights(blocks.shape[1]) - blocks).sum(axis=1) for grid in (one, other)]
    takes_other = (errors[1] < errors[0])[:, None]
    zeros = np.where(takes_other, np.asarray(other.zero_points), np.asarray(one.zero_points))
    return StepGrid(np.where(takes_other, other.scales, one.scales), one.bits, zeros)


def _peaks(blocks: Float32) -> Float32:
    """Return the weight of largest magnitude of each block, [R, 1]."""
    at = np.abs(blocks).argmax(axis=1)[:, None]
    peaks: Float32 = np.take_along_axis(blocks, at, axis=1)
    return peaks


def _squared_error(blocks: Float32, scales: Float32, bits: int) -> Float32:
    values = StepGrid(scales, bits).encode(blocks).weights(blocks.shape[1])
    errors: Float32 = np.square(values - blocks).sum(axis=1, keepdims=True)
    return errors


MOST_STEPS = 255
"""Of a row, that a scale may be: a byte's."""
_RANGE_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)

round_to_nearest = Blockwise(fit_peak, widths=(2, 4, 8))
round_to_positive = Blockwise(fit_positive, widths=(4, 8))
