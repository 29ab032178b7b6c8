"""Error feedback (GPTQ, arXiv 2210.17323): the error of each rounded weight is made up for by those not yet rounded.

What is minimised is the error of the layer's outputs, tr(dW G dW^T) with G the mean of x x^T over calibration rows, and
not that of its weights. Columns are rounded in order. With G = U D U^T, U unit upper triangular, an error e in column j
moves every later column i by -e * V[j, i], V the inverse of U: that is GPTQ's row of the Cholesky factor of the inverse
of G over its diagonal. We take U from the Cholesky factor of G itself, so that G is never inverted: V is needed inside
blocks only, and what earlier blocks ask of a block is (W - Q) U V over their columns.

Any rounding whose grid belongs to a block can be fed back: the grid of a block is fitted when the block is reached, to
the weights as the errors before it have left them. Ternary grids are so coarse that aligning their scales afterwards
(`alignment`) is worth its time; for GPTQ we stay with what was published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from graphs.layers import Float32
from quant.calibration.statistics import InputStatistics
from quant.rounding.alignment import aligned
from quant.rounding.block_codes import BlockCodes, UInt8, joined
from quant.rounding.blockwise import refuse_not_finite
from quant.rounding.grid import Grid
from quant.rounding.rtn import MOST_STEPS, fit_peak, fit_positive, fit_range
from quant.rounding.ternary import fit_optimal

DAMPING = 0.01
"""Of G's mean diagonal, added to the diagonal, as in GPTQ: channels that never spoke have no say and no singularity."""
STRONG_DAMPING = 0.3
"""The same for codes of 4 bits with zero points: 0.1 to 0.3 lose least at the end of a real decoder, whose loud
directions count for less there than in a layer's own error (docs/decisions/0052-damped-error-feedback.md)."""

_ROOM = 1.15
"""Of a row's widest block before any error was fed to it: errors widen blocks."""
_SMALLEST_STEP = 1e-12  # of a row that is all zero

_COLUMNS_AT_ONCE = 32  # of a row with one grid: what is fed within is a product of vectors, beyond of matrices


@dataclass(frozen=True)
class Feedback:
    """Rounds the columns of a matrix in order, feeding errors forward.

    Attributes:
        fit: Finds the grid of a block.
        widths: Bits that the fit is made for.
        aligns: Fits the scales of a row once more, together, when all its codes stand.
        codes_scales: The fit takes steps of rows, of which scales are whole multiples.
        damping: Of G's mean diagonal.
        needs_gram: True: calibration must have kept G.
    """

    fit: Callable[..., Grid]
    widths: tuple[int, ...]
    aligns: bool = False
    codes_scales: bool = False
    damping: float = DAMPING
    needs_gram: ClassVar[bool] = True

    def __call__(self, rows: Float32, bits: int, block_size: int, inputs: InputStatistics | None = None) -> BlockCodes:
        """Return codes for rows [N, K] float32.

        Args:
            rows: [N, K] float32.
            bits: One of `widths`.
            block_size: Weights per scale.
            inputs: What met the layer, with the Gram of its K channels.

        Raises:
            QuantizationError: There is no Gram, it is not K x K or not finite, or a weight is not finite.
        """
        refuse_not_finite(rows)
        gram = damped(gram_of(inputs, rows.shape[1]), self.damping)
        steps = _steps(rows, bits, block_size) if self.codes_scales else None
        fit = partial(self.fit, steps=steps) if self.codes_scales else self.fit
        parts = _fed_forward(rows, gram, block_size, lambda block: fit(block, bits))
        codes = replace(joined([part.padded(block_size) for part in parts], axis=1), steps=steps)
        return aligned(codes, rows, gram.astype(np.float32)) if self.aligns else codes


def _steps(rows: Float32, bits: int, block_size: int) -> Float32:
    """Return [N, 1] float32 of which the scales of a row's blocks will be whole multiples, some room above them."""
    starts = range(0, rows.shape[1], block_size)
    blocks = [rows[:, start : start + block_size] for start in starts]
    spans = [np.maximum(block.max(axis=1), 0) - np.minimum(block.min(axis=1), 0) for block in blocks]
    widest = np.max(spans, axis=0)[:, None] / ((1 << bits) - 1)
    return np.asarray(np.maximum(widest * _ROOM / MOST_STEPS, _SMALLEST_STEP), np.float32)


def round_rows_with_feedback(rows: Float32, grid: Grid, inputs: InputStatistics | None) -> UInt8:
    """Return the codes [N, K] uint8 of rows whose weights share one grid each, errors fed forward.

    Args:
        rows: [N, K] float32.
        grid: Of each row.
        inputs: What met the layer, with the Gram of its K channels.

    Raises:
        QuantizationError: There is no Gram, it is not K x K or not finite, or a weight is not finite.
    """
    refuse_not_finite(rows)
    parts = _fed_forward(rows, damped(gram_of(inputs, rows.shape[1])), _COLUMNS_AT_ONCE, lambda block: grid)
    return np.concatenate([part.codes for part in parts], axis=1)


def _fed_forward(
    rows: Float32, gram: NDArray[np.float64], block_size: int, grid_of: Callable[[Float32], Grid]
) -> Iterator[BlockCodes]:
    """Yield the codes of one block of columns after the other, the last one perhaps narrower."""
    factor = unit_factor(gram).astype(np.float32)
    errors = np.empty(rows.shape, np.float32)
    for start in range(0, rows.shape[1], block_size):
        here = slice(start, start + block_size)
        inverse: Float32 = np.linalg.inv(factor[here, here])
        asked = factor[:start, here] @ inverse
        block = rows[:, here] + errors[:, :start] @ asked
        codes = _round_block(block, inverse, grid_of(block))
        errors[:, here] = rows[:, here] - codes.weights(block.shape[1])
        yield codes


def _round_block(block: Float32, inverse: Float32, grid: Grid) -> BlockCodes:
    """Return the codes of one block [N, n], which is changed to the weights that were rounded."""
    for column in range(block.shape[1]):
        weights = block[:, column : column + 1]
        error = weights - grid.encode(weights).weights(1)
        block[:, column + 1 :] -= error * inverse[column, column + 1 :]
    return grid.encode(block)


def unit_factor(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit upper triangular U of a positive definite matrix U D U^T, [K, K]."""
    factor = np.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1]
    return np.asarray(factor / np.diagonal(factor), np.float64)


def damped(gram: Float32, damping: float = DAMPING) -> NDArray[np.float64]:
    """Return a Gram in float64 whose diagonal was raised by a share of its mean."""
    raised = gram.astype(np.float64)
    raised[np.diag_indices_from(raised)] += damping * np.trace(raised) / len(raised) or 1.0
    return raised


def gram_of(inputs: InputStatistics | None, num_inputs: int) -> Float32:
    """Return the Gram of a layer's inputs, [K, K].

    Raises:
        QuantizationError: It was not recorded, is not K x K or not finite.
    """
    if inputs is None or inputs.gram is None:
        raise QuantizationError("error feedback needs calibration: what met this layer was not recorded")
    gram = inputs.gram
    if gram.shape != (num_inputs, num_inputs):
        raise QuantizationError(f"calibration recorded a Gram of {gram.shape} for a layer of {num_inputs} inputs")
    if not np.isfinite(gram).all():
        raise QuantizationError("calibration recorded inputs that are NaN or infinite")
    return gram


round_with_feedback = Feedback(fit_peak, widths=(2, 4, 8))
round_positive_with_feedback = Feedback(fit_positive, widths=(4, 8))
round_range_with_feedback = Feedback(fit_range, widths=(4, 8), damping=STRONG_DAMPING)
round_coded_with_feedback = Feedback(fit_range, widths=(4, 8), codes_scales=True, damping=STRONG_DAMPING)
round_ternary_with_feedback = Feedback(fit_optimal, widths=(2,), aligns=True)
