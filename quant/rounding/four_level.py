"""Four levels in two bits: weight = s * t with t in -2, -1, 0, 1 and an s of either sign, of least squared error.

As |s| falls from above every weight, weights step away from 0 one after the other: |w| = |s| / 2 takes the first step,
and on the side that has two, |w| = 3 |s| / 2 takes the second. Sorting those events and keeping sums of w * t and t^2
tries every assignment that some s can make; the error of each at its best s is the block's energy less
(sum w t)^2 / sum t^2. That is exact, as is the ternary grid, which is the same sweep without second steps.

Levels at -1.5, -0.5, 0.5, 1.5 would err less on Gaussian weights, but their zero point of 1.5 is no uint8, and a float
one takes ONNX Runtime's path of unpacking to float32, about 100 times slower on a CPU. As an offset of s / 2 it would
cost the second product that `ternary_mean` costs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphs.layers import Float32
from quant.rounding.blockwise import Blockwise
from quant.rounding.grid import StepGrid

_SECOND = np.uint32(1)  # in the lowest bit of an event's sort key


def fit_four_levels(blocks: Float32, bits: int) -> StepGrid:
    """Return the grids of least squared error for blocks [R, n]."""
    up, gain_up = best_scales(blocks)
    down, gain_down = best_scales(-blocks)
    return StepGrid(np.where(gain_up >= gain_down, up, -down).astype(np.float32), bits)


def best_scales(blocks: Float32) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the best s >= 0 for t in -2 .. 1, and the energy that it explains: [R, 1] each.

    An event is its time, |w| or |w| / 3, as the bits of a float32, which sort as integers do; the lowest bit says which
    step it is. Losing that bit moves s by 1e-7 of itself.
    """
    sizes = np.abs(blocks)
    first = sizes.view(np.uint32) & ~_SECOND
    second = np.where(blocks < 0, sizes / np.float32(3), np.float32(0)).view(np.uint32) | _SECOND
    events = np.sort(np.concatenate([first, second], axis=1), axis=1)[:, ::-1]
    times = (events & ~_SECOND).view(np.float32)
    growth = np.where(times > 0, 1 + 2 * (events & _SECOND), 0)  # of t^2: 1 by the first step, 4 - 1 by the second
    products = np.cumsum(times * growth, axis=1, dtype=np.float64)
    squares = np.maximum(np.cumsum(growth, axis=1), 1)
    gains = np.square(products) / squares
    best = gains.argmax(axis=1)[:, None]
    scales = np.take_along_axis(products, best, axis=1) / np.take_along_axis(squares, best, axis=1)
    return scales, np.take_along_axis(gains, best, axis=1)


round_to_four_levels = Blockwise(fit_four_levels, widths=(2,))
