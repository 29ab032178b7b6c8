"""TOVA: rows that the last token looks at (Oren et al., arXiv 2401.06104, section 3)."""

from __future__ import annotations

import numpy as np

from quant.kv.policy import Float32, LayerRows, ScorePolicy, attention


class Tova(ScorePolicy):
    """Scores a row by the last token's attention, mean over all heads of the layer; every head keeps the same rows.

    The last row stays, as in kvpress. The paper drops a row at every step; here rows are chosen once.
    """

    def score(self, layer: LayerRows, num_kept: int) -> Float32:
        """Return the last token's attention, the same for every head."""
        seen = attention(layer, 1)[:, 0].mean(axis=0)
        seen[-1] = np.inf
        scores: Float32 = np.broadcast_to(seen, layer.keys.shape[:2])
        return scores
