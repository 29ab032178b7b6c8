"""SnapKV: rows that the end of the prompt looks at (Li et al., arXiv 2404.14469, section 4)."""

from __future__ import annotations

import numpy as np

from quant.kv.policy import Float32, LayerRows, ScorePolicy, attention, by_kv_head

_KERNEL = 5
"""Rows over which scores are averaged, so that what stands beside an important row stays as well; the paper's code."""


class SnapKV(ScorePolicy):
    """Scores a row by the attention that the last w tokens pay it, and keeps those w.

    A = softmax(q k^T / sqrt(C)) of the last w tokens, causal; the mean over them, averaged over 5 neighbours (zeros
    beyond both ends of the L - w rows before the window), and then over the query heads of a key/value head, as kvpress
    does; the paper's code adds instead of averaging, which orders the rows of a head alike. w is the number of tokens
    whose queries are known (32), or half of what is kept where that is less: the paper leaves budgets of less than a
    window undefined.
    """

    @property
    def window(self) -> int:
        """w, at least 1."""
        return max(min(self.budget.num_queries, self.budget.num_kept // 2), 1)

    def score(self, layer: LayerRows, num_kept: int) -> Float32:
        """Return attention averaged over neighbours; infinity for the window."""
        num_kv, num_rows = layer.keys.shape[:2]
        window = self.window
        scores = np.full((num_kv, num_rows), np.inf, np.float32)
        if window < num_rows:
            seen = attention(layer, window)[..., : num_rows - window].mean(axis=1)
            scores[:, : num_rows - window] = by_kv_head(_pooled(seen), num_kv)
        return scores


def _pooled(scores: Float32) -> Float32:
    """Return the mean of 5 neighbours of [H, n], what lies beyond the ends being 0."""
    half = _KERNEL // 2
    padded = np.pad(scores, ((0, 0), (half, half)))
    total: Float32 = np.sum([padded[:, at : at + scores.shape[1]] for at in range(_KERNEL)], axis=0, dtype=np.float32)
    return total / np.float32(_KERNEL)
