"""StreamingLLM: the first rows and the last ones (Xiao et al., arXiv 2309.17453, section 3)."""

from __future__ import annotations

import numpy as np

from quant.kv.policy import LayerRows, Policy, Rows, of_all_heads

SINKS = 4
"""Rows at the start that attention rests on; the paper's number."""


class StreamingLLM(Policy):
    """Keeps the first 4 rows and the last n - 4; of fewer than 5 rows, one is the last.

    The paper gives kept rows new positions within the cache; here, as in kvpress, they keep their own.
    """

    def kept(self, layer: LayerRows, num_kept: int) -> Rows:
        """Return the same rows for every head."""
        sinks = min(SINKS, num_kept - 1)
        recent = np.arange(layer.num_rows - num_kept + sinks, layer.num_rows)
        return of_all_heads(np.concatenate([np.arange(sinks), recent]), len(layer.keys))
