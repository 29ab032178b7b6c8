"""Order statistics of a set of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
"""Names of the statistics in the order in which reports show them."""


@dataclass(frozen=True)
class Distribution:
    """Statistics of n >= 1 measurements, in their unit.

    Percentiles interpolate linearly between the two nearest ranks (numpy's default). With n below 20 a p95, and below
    100 a p99, is close to the maximum and says little.
    """

    n: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution | None:
        """Return the statistics of `values`, or None where there are none."""
        if not values:
            return None
        array = np.asarray(values, dtype=np.float64)
        p50, p90, p95, p99 = np.percentile(array, (50, 90, 95, 99)).tolist()
        return cls(len(values), float(array.mean()), p50, p90, p95, p99, float(array.max()))

    def statistic(self, name: str) -> float:
        """Return one of `STATISTICS` by name."""
        return float(getattr(self, name))
