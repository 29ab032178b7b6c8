"""YaRN (Peng et al., arXiv 2309.00071): frequencies between two that are kept and divided, by how often each turns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import UnsupportedConfigError

_FAST, _SLOW = 32.0, 1.0
"""Turns within the context of training above which a frequency is kept, and below which it is divided (section 3.2)."""
_LEAST_WIDTH = 0.001
"""Of the ramp between both where they fall together (transformers, `linear_ramp_factor`)."""


@dataclass(frozen=True)
class Yarn:
    """What the rotary part of a config says beside base and factor.

    Attributes:
        original_positions: The context of training before it was extended.
        fast: Turns within it above which a frequency is kept.
        slow: Turns within it below which a frequency is divided.
        is_rounded: The pairs between which the ramp lies are whole numbers.
        scale: Of cos and sin, so of queries and of keys (section 3.4, where it is sqrt(1/t)).
    """

    original_positions: float
    fast: float
    slow: float
    is_rounded: bool
    scale: float

    @classmethod
    def read(cls, given: Mapping[str, Any], config: Mapping[str, Any], factor: float) -> Yarn:
        """Return it as transformers reads it (`_compute_yarn_parameters`).

        Args:
            given: The rotary part of a text config.
            config: The text config.
            factor: How much longer the context became.

        Raises:
            UnsupportedConfigError: Nothing says how long the context was.
        """
        stated = config.get("original_max_position_embeddings", given.get("original_max_position_embeddings"))
        original = config.get("max_position_embeddings") if stated is None else stated
        if not original or factor <= 0:
            raise UnsupportedConfigError(
                f"rope_parameters {dict(given)!r}: type 'yarn' wants original_max_position_embeddings and a factor "
                "above 0"
            )
        fast, slow = (given.get(key) or default for key, default in (("beta_fast", _FAST), ("beta_slow", _SLOW)))
        return cls(float(original), float(fast), float(slow), bool(given.get("truncate", True)), _scale(given, factor))

    def blended(self, plain: npt.NDArray[np.float32], theta: float, factor: float) -> npt.NDArray[np.float32]:
        """Return [C/2] frequencies of `plain` ones, each kept, divided by the factor, or between both."""
        num = 2 * len(plain)
        first, last = (self._pair(turns, num, theta) for turns in (self.fast, self.slow))
        if self.is_rounded:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, num - 1)
        width = last - first if last != first else _LEAST_WIDTH
        divided = np.clip((np.arange(len(plain), dtype=np.float32) - np.float32(first)) / np.float32(width), 0, 1)
        found: npt.NDArray[np.float32] = (plain / np.float32(factor) * divided + plain * (1 - divided)).astype(
            np.float32
        )
        return found

    def _pair(self, turns: float, num: int, theta: float) -> float:
        """Return the number, not whole, of the pair that turns so often within the context of training."""
        return num * math.log(self.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _scale(given: Mapping[str, Any], factor: float) -> float:
    """Return what cos and sin are multiplied by: as stated, or by the logarithm of the factor."""
    stated, part, whole = (given.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if stated is not None:
        return float(stated)
    if part and whole:
        return _grown(factor, float(part)) / _grown(factor, float(whole))
    return _grown(factor, 1.0)


def _grown(factor: float, share: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0
