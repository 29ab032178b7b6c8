"""Roundings that look at one block at a time and at no calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bundle.errors import QuantizationError
from graphs.layers import Float32
from quant.calibration.statistics import InputStatistics
from quant.rounding.block_codes import BlockCodes, joined
from quant.rounding.grid import Fit

_SLAB_WEIGHTS = 1 << 18  # 1 MiB at a time: the steps then stay in the cache, and a large matrix needs no large copies


@dataclass(frozen=True)
class Blockwise:
    """Fits a grid to each block and puts its weights on the nearest values.

    Attributes:
        fit: Finds the grids.
        widths: Bits that the fit is made for.
        needs_gram: False: calibration is not read.
    """

    fit: Fit
    widths: tuple[int, ...]
    needs_gram: ClassVar[bool] = False

    def __call__(self, rows: Float32, bits: int, block_size: int, inputs: InputStatistics | None = None) -> BlockCodes:
        """Return codes for rows [N, K] float32; a last block that K does not fill is fitted to what it holds.

        Args:
            rows: [N, K] float32.
            bits: One of `widths`.
            block_size: Weights per scale.
            inputs: Not read.

        Raises:
            QuantizationError: A weight is NaN or infinite.
        """
        slab = max(1, _SLAB_WEIGHTS // max(1, rows.shape[1]))
        starts = range(0, len(rows), slab)
        return joined([self._round(rows[start : start + slab], bits, block_size) for start in starts], axis=0)

    def _round(self, rows: Float32, bits: int, block_size: int) -> BlockCodes:
        refuse_not_finite(rows)
        whole = rows.shape[1] // block_size * block_size
        parts = []
        if whole:
            blocks = np.ascontiguousarray(rows[:, :whole]).reshape(-1, block_size)
            parts.append(self.fit(blocks, bits).encode(blocks).map(lambda array: array.reshape(len(rows), -1)))
        if whole < rows.shape[1]:
            last = np.ascontiguousarray(rows[:, whole:])
            parts.append(self.fit(last, bits).encode(last).padded(block_size))
        return joined(parts, axis=1)


def refuse_not_finite(rows: Float32) -> None:
    """Refuse weights that no grid holds.

    Raises:
        QuantizationError: One is NaN or infinite.
    """
    if not np.isfinite(rows).all():
        raise QuantizationError("its weights hold NaN or infinity: the checkpoint is damaged")
