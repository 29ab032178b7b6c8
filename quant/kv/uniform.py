"""Rows at even distances: the second baseline."""

from __future__ import annotations

import numpy as np

from quant.kv.policy import LayerRows, Policy, Rows, of_all_heads


class Uniform(Policy):
    """Keeps n rows from the first to the last, at distances of (L - 1) / (n - 1), rounded; of n = 1 the last."""

    def kept(self, layer: LayerRows, num_kept: int) -> Rows:
        """Return the same rows for every head."""
        last, steps = layer.num_rows - 1, num_kept - 1
        rows = (np.arange(num_kept) * last + steps // 2) // steps if steps else np.array([last])
        return of_all_heads(rows, len(layer.keys))
