"""Half-quadratic rounding (HQQ, Badri and Shaji 2023): grids that let a few weights go to hold the many.

Minimises sum |w - q|^0.7 over a block instead of the squared error, so that an outlier does not stretch the grid of its
neighbours. Half-quadratic splitting: e, the part of the error that outliers own, is a shrinkage of w - q; the grid is
then fitted to w - e. beta rises by kappa each turn; the constants are HQQ's own.

Three differences from HQQ. The zero point stays a whole code, because ONNX Runtime's fast kernels take no float ones
(about 100 times slower): it is rounded in every turn, and the scale, which HQQ keeps, moves by least squares to make up
for it. Errors are measured in steps of the block, because beta has a unit: on weights of 0.02, HQQ's shrinkage lets
nothing go. And the best grid that was met is kept, the one of round-to-nearest among them.
"""

from __future__ import annotations

import numpy as np

from graphs.layers import Float32
from quant.rounding.block_codes import UInt8, zero_code
from quant.rounding.blockwise import Blockwise
from quant.rounding.grid import StepGrid
from quant.rounding.rtn import fit_peak

NORM = np.float32(0.7)
_BETA = 10.0
_KAPPA = 1.01
_TURNS = 20
_TINY = np.float32(1e-8)  # keeps 0 from a negative power


def fit_half_quadratic(blocks: Float32, bits: int) -> StepGrid:
    """Return the grid of least p-norm error that the search met for each block [R, n]."""
    scales = fit_peak(blocks, bits).scales
    zeros = np.full(scales.shape, zero_code(bits), np.uint8)
    least = loss(StepGrid(scales, bits, zeros), blocks)
    grid, beta = _from_range(blocks, bits), _BETA
    for _ in range(_TURNS):
        found = loss(grid, blocks)
        is_better = found < least
        least = np.minimum(found, least)
        scales = np.where(is_better, grid.scales, scales)
        zeros = np.where(is_better, _zeros_of(grid), zeros)
        grid = _refitted(grid, blocks, beta)
        beta *= _KAPPA
    return StepGrid(scales, bits, zeros)


def loss(grid: StepGrid, blocks: Float32) -> Float32:
    """Return sum |w - q|^0.7 of each block, [R, 1]."""
    errors = np.abs(blocks - grid.encode(blocks).weights(blocks.shape[1]))
    total: Float32 = np.power(errors, NORM).sum(axis=1, keepdims=True)
    return total


def shrink(errors: Float32, beta: float) -> Float32:
    """Return HQQ's generalised soft threshold of errors: sign(x) max(|x| - |x|^(p - 1) / beta, 0)."""
    sizes = np.abs(errors)
    kept = np.maximum(sizes - np.power(sizes + _TINY, NORM - 1) / np.float32(beta), 0)
    return np.copysign(kept, errors)


def _from_range(blocks: Float32, bits: int) -> StepGrid:
    """Return the grid from each block's smallest to its largest weight."""
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    scales = (high - low) / np.float32((1 << bits) - 1)
    return StepGrid(scales, bits, _zeros(np.divide(-low, scales, out=np.zeros_like(low), where=scales != 0), bits))


def _refitted(grid: StepGrid, blocks: Float32, beta: float) -> StepGrid:
    """Return the grid fitted to the weights without what outliers own."""
    scales = np.where(grid.scales == 0, np.float32(1), grid.scales)
    codes = grid.encode(blocks).codes.astype(np.float32)
    target = blocks / scales
    target -= shrink(target - (codes - _zeros_of(grid)), beta)
    zeros = _zeros((codes - target).mean(axis=1, keepdims=True), grid.bits)
    steps = codes - zeros
    energy = np.square(steps).sum(axis=1, keepdims=True)
    stretch = np.divide((target * steps).sum(axis=1, keepdims=True), energy, out=np.ones_like(scales), where=energy > 0)
    return StepGrid(np.where(stretch > 0, grid.scales * stretch, grid.scales), grid.bits, zeros)


def _zeros_of(grid: StepGrid) -> UInt8:
    return np.full(grid.scales.shape, zero_code(grid.bits), np.uint8) if grid.zero_points is None else grid.zero_points


def _zeros(points: Float32, bits: int) -> UInt8:
    return np.clip(np.rint(points), 0, (1 << bits) - 1).astype(np.uint8)


round_half_quadratic = Blockwise(fit_half_quadratic, widths=(2, 4, 8))
