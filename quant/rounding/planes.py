"""Two ternary planes: weight = a * t + b * u with t and u in -1, 0, 1; nine values in four bits.

PTQTP (arXiv 2509.16989) fits (a, b) by least squares and (t, u) by trying all nine, in turns, which never raises the
squared error. We take the better of two starts: the optimal ternary grid with that of what it leaves, and nine equal
steps (a = 3 b). In ONNX Runtime two planes are two 2-bit products, so they save nothing against int4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphs.layers import Float32
from quant.rounding.block_codes import BlockCodes, zero_code
from quant.rounding.blockwise import Blockwise
from quant.rounding.grid import StepGrid
from quant.rounding.ternary import BITS, LOWEST, best_scales, fit_optimal

_TURNS = 12  # Gaussian blocks of 128 gain less than 1 % after these
_ZERO = np.float32(zero_code(BITS))


@dataclass(frozen=True)
class PlaneGrid:
    """The nine sums of two ternary grids.

    Attributes:
        first: [R, 1] float32, a of each block.
        second: [R, 1] float32, b of each block.
    """

    first: Float32
    second: Float32

    def encode(self, weights: Float32) -> BlockCodes:
        """Return the codes of the nearest sums; the second plane is the rest of the first."""
        second = StepGrid(self.second, BITS, lowest=LOWEST)
        lefts = [weights - self.first * np.float32(trit) for trit in (-1, 0, 1)]
        planes = [second.encode(left).codes for left in lefts]
        misses = [np.abs(left - self.second * (plane - _ZERO)) for left, plane in zip(lefts, planes, strict=True)]
        nearest = np.argmin(misses, axis=0)
        codes = np.take_along_axis(np.stack(planes), nearest[None], axis=0)[0]
        rest = BlockCodes(codes, self.second, BITS)
        return BlockCodes((nearest + LOWEST).astype(np.uint8), self.first, BITS, rest=rest)


def fit_planes(blocks: Float32, bits: int) -> PlaneGrid:
    """Return the better of two refined grids for each block [R, n]."""
    peeled, even = (_settled(start, blocks) for start in (_peeled(blocks), _even(blocks)))
    is_even = squared_error(even, blocks) < squared_error(peeled, blocks)
    return PlaneGrid(np.where(is_even, even.first, peeled.first), np.where(is_even, even.second, peeled.second))


def squared_error(grid: PlaneGrid, blocks: Float32) -> Float32:
    """Return the sum of squared errors of each block, [R, 1]."""
    errors: Float32 = np.square(grid.encode(blocks).weights(blocks.shape[1]) - blocks).sum(axis=1, keepdims=True)
    return errors


def refined(grid: PlaneGrid, blocks: Float32) -> PlaneGrid:
    """Return the (a, b) of least squared error for the trits that `grid` gives its weights."""
    codes = grid.encode(blocks)
    t = codes.codes - _ZERO
    u = np.zeros_like(t) if codes.rest is None else codes.rest.codes - _ZERO
    tt, uu, tu, wt, wu = (
        (x * y).sum(axis=1, keepdims=True) for x, y in ((t, t), (u, u), (t, u), (blocks, t), (blocks, u))
    )
    determinant = tt * uu - np.square(tu)  # an integer; 0 where one plane is empty or equals the other
    solvable = determinant > 0
    first = np.divide(wt * uu - wu * tu, determinant, out=grid.first.copy(), where=solvable)
    second = np.divide(wu * tt - wt * tu, determinant, out=grid.second.copy(), where=solvable)
    return PlaneGrid(first, second)


def _settled(grid: PlaneGrid, blocks: Float32) -> PlaneGrid:
    for _ in range(_TURNS):
        grid = refined(grid, blocks)
    return grid


def _peeled(blocks: Float32) -> PlaneGrid:
    first = fit_optimal(blocks, BITS)
    return PlaneGrid(first.scales, best_scales(blocks - first.encode(blocks).weights(blocks.shape[1])))


def _even(blocks: Float32) -> PlaneGrid:
    step = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(4)  # nine equal steps reach the peak at 4
    return PlaneGrid(step * np.float32(3), step)


round_to_planes = Blockwise(fit_planes, widths=(BITS,))
