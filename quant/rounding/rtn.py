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


def _peaks(blocks: Float32) -> Float32:
    """Return the weight of largest magnitude of each block, [R, 1]."""
    at = np.abs(blocks).argmax(axis=1)[:, None]
    peaks: Float32 = np.take_along_axis(blocks, at, axis=1)
    return peaks


def _squared_error(blocks: Float32, scales: Float32, bits: int) -> Float32:
    values = StepGrid(scales, bits).encode(blocks).weights(blocks.shape[1])
    errors: Float32 = np.square(values - blocks).sum(axis=1, keepdims=True)
    return errors


round_to_nearest = Blockwise(fit_peak, widths=(2, 4, 8))
round_to_positive = Blockwise(fit_positive, widths=(4, 8))
