"""What meets each linear layer when a model runs on real inputs; the raw material of every calibrated scheme."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphs.layers import Float32


@dataclass(frozen=True)
class InputStatistics:
    """What a layer's input looked like over the calibration samples.

    Attributes:
        num_rows: Rows (tokens, patches) seen.
        peaks: [K] float32, the largest magnitude of each channel.
        gram: [K, K] float32, the mean of x x^T over the rows; None where no scheme asked for it.
    """

    num_rows: int
    peaks: Float32
    gram: Float32 | None = None

    def scaled(self, divisors: NDArray[np.float32]) -> InputStatistics:
        """Return the statistics of x / divisors, [K]."""
        gram = None if self.gram is None else self.gram / np.outer(divisors, divisors)
        return InputStatistics(self.num_rows, np.asarray(self.peaks / np.abs(divisors), np.float32), gram)
