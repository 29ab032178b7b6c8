"""Scores of an answer less those of the same answer behind another prompt."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from serving.contrast import M3ID, VCD, Contrast

Scores = npt.NDArray[np.float32]

_MOST_EXPONENT = 14.0
"""A difference of log chances then counts a million times: nothing else does, and float32 has an end."""


def contrasted(scores: Scores, other: Scores, num_tokens: int, how: Contrast) -> Scores:
    """Return [V] scores from which those behind the other prompt are taken off, before anything else changes them.

    Args:
        scores: [V] logits of the next token.
        other: [V] logits of the same token behind the other prompt.
        num_tokens: Of the answer so far.
        how: Which of the two ways, and how much.
    """
    return _vcd(scores, other, how) if isinstance(how, VCD) else _m3id(scores, other, num_tokens, how)


def _vcd(scores: Scores, other: Scores, how: VCD) -> Scores:
    """Return (1 + alpha) l - alpha l', and minus infinity where l is less than log beta below its largest."""
    alpha = np.float32(how.alpha)
    found = (1 + alpha) * scores - alpha * other
    if how.beta:
        found[scores < scores.max() + np.float32(math.log(how.beta))] = -np.inf
    return found


def _m3id(scores: Scores, other: Scores, num_tokens: int, how: M3ID) -> Scores:
    """Return l + ((1 - g) / g) (log p - log p') with g = exp(-decay t), where no token is likely enough."""
    own = _log_chances(scores)
    if math.exp(own.max()) >= how.confidence:
        return scores
    weight = math.expm1(min(how.decay * num_tokens, _MOST_EXPONENT))
    return scores + np.float32(weight) * (own - _log_chances(other))


def _log_chances(scores: Scores) -> Scores:
    chances: Scores = scores - scores.max()
    chances -= np.log(np.exp(chances).sum())
    return chances
