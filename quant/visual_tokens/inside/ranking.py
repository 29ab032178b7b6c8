"""The image tokens of the highest scores."""

from __future__ import annotations

from math import ceil

import numpy as np

from quant.visual_tokens.inside.attention import Float32
from runtime.feeds import Int64
from runtime.segmented_prompt import Cut


def num_kept(num_tokens: int, share: float) -> int:
    """Return how many of so many tokens a share is: at least one, and a part of one counts as one."""
    return max(ceil(num_tokens * share - _ROUNDING), 1)


_ROUNDING = 1e-9
"""0.1 * 30 is a little more than 3."""


def best_images(cut: Cut, scores: Float32, num: int) -> Int64:
    """Return the image tokens of the highest scores, in order; of equal ones the first.

    Args:
        cut: Where one segment ends.
        scores: [L].
        num: How many go on, where there are as many.
    """
    rows = cut.image_rows
    order = np.argsort(-scores[rows], kind="stable")[:num]
    return np.sort(rows[order])
