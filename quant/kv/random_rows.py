"""Random rows: the first baseline, which a policy has to beat at the same budget."""

from __future__ import annotations

import numpy as np

from quant.kv.policy import Float32, LayerRows, ScorePolicy


class RandomRows(ScorePolicy):
    """Every head of every layer keeps rows drawn without preference.

    Drawn by the prompt's content: the same prompt keeps the same rows, whatever runs beside it. As in kvpress.
    """

    def score(self, layer: LayerRows, num_kept: int) -> Float32:
        """Return random scores."""
        numbers = np.random.default_rng((layer.seed, layer.index))
        return numbers.random(layer.keys.shape[:2], np.float32)
