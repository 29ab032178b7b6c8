"""Whether a quantity sampled over time stays flat: its slope, with an interval that knows that neighbours are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_BLOCKS = 16
"""Means of so many stretches are nearly independent where single samples, a second apart, are not."""
_T_975 = 2.145
"""Student's t for NUM_BLOCKS - 2 degrees of freedom, two-sided 95 %."""


@dataclass(frozen=True)
class Slope:
    """A straight line through samples.

    Attributes:
        per_minute: Its slope.
        low: Lower end of the slope's 95 % interval.
        high: Upper end.
        minutes: That the samples span.
    """

    per_minute: float
    low: float
    high: float
    minutes: float

    @property
    def sure_growth(self) -> float:
        """How much the quantity grew over all at least, with 97.5 % confidence; 0 where it may not have grown."""
        return max(self.low, 0.0) * self.minutes

    def __str__(self) -> str:
        return f"{self.per_minute:+.2f} a minute (95 %: {self.low:+.2f} to {self.high:+.2f})"


def slope_of(times_s: Sequence[float], values: Sequence[float]) -> Slope:
    """Return the slope of values over time, by least squares over the means of blocks.

    Raises:
        ValueError: There are fewer samples than two per block.
    """
    if len(times_s) < 2 * NUM_BLOCKS:
        raise ValueError(f"{len(times_s)} samples are too few for a slope; {2 * NUM_BLOCKS} are needed")
    minutes = np.array([np.mean(block) / 60 for block in np.array_split(np.asarray(times_s), NUM_BLOCKS)])
    means = np.array([np.mean(block) for block in np.array_split(np.asarray(values), NUM_BLOCKS)])
    off = minutes - minutes.mean()
    slope = float(off @ means / (off @ off))
    rests = means - means.mean() - slope * off
    error = math.sqrt(float(rests @ rests) / (NUM_BLOCKS - 2) / float(off @ off))
    return Slope(slope, slope - _T_975 * error, slope + _T_975 * error, (times_s[-1] - times_s[0]) / 60)
