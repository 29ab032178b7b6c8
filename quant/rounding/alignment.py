"""Scales fitted once more, all of a row together, to the outputs of its layer.

Once codes stand, the row is sum over blocks of s_b t_b with t_b known, and its error at the output is quadratic in the
scales: least squares with M[b, c] = t_b G t_c and r[b] = t_b G w has one solution. PT2-LLM calls that the
activation-aware grid alignment (arXiv 2510.03267, section 3.3). It cannot raise the error that calibration sees.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphs.layers import Float32
from quant.rounding.block_codes import BlockCodes

_SLAB_ROWS = 512
_RIDGE = 1e-6  # of M's mean diagonal: a block of zeros has no scale to find, and keeps the one it has


def aligned(codes: BlockCodes, rows: Float32, gram: Float32) -> BlockCodes:
    """Return the same codes with the scales of least output error.

    Args:
        codes: Of rows, without offsets and of one plane.
        rows: [N, K] float32.
        gram: [K, K], the mean of x x^T, damped as the codes' rounding saw it.
    """
    num_inputs = rows.shape[1]
    steps = replace(codes, scales=np.ones_like(codes.scales)).weights(num_inputs)
    errors = rows - codes.weights(num_inputs)
    scales = codes.scales.copy()
    for start in range(0, len(rows), _SLAB_ROWS):
        here = slice(start, start + _SLAB_ROWS)
        scales[here] += _correction(steps[here], errors[here], gram, codes.block_size)
    return replace(codes, scales=scales)


def _correction(steps: Float32, errors: Float32, gram: Float32, block_size: int) -> Float32:
    """Return what to add to the scales, [R, blocks], for steps and errors [R, K]."""
    starts = np.arange(0, steps.shape[1], block_size)
    normal = np.empty((len(steps), len(starts), len(starts)))
    wanted = np.empty((len(steps), len(starts)))
    for block, start in enumerate(starts):
        here = slice(start, start + block_size)
        seen = steps[:, here] @ gram[here]
        normal[:, block] = np.add.reduceat(seen * steps, starts, axis=1)
        wanted[:, block] = np.einsum("rk,rk->r", seen, errors)
    ridge = _RIDGE * np.trace(normal, axis1=1, axis2=2) / len(starts) + np.finfo(np.float32).tiny
    normal += ridge[:, None, None] * np.eye(len(starts))
    return np.linalg.solve(normal, wanted[:, :, None])[:, :, 0].astype(np.float32)
