"""Knorm: rows whose keys are short (Devoto et al., arXiv 2406.11430, section 3)."""

from __future__ import annotations

import numpy as np

from quant.kv.policy import Float32, LayerRows, ScorePolicy


class Knorm(ScorePolicy):
    """Scores a row by -||k||: the paper finds that short keys are attended most."""

    def score(self, layer: LayerRows, num_kept: int) -> Float32:
        """Return the negative norms of keys."""
        norms: Float32 = np.linalg.norm(layer.keys, axis=-1)
        return -norms
