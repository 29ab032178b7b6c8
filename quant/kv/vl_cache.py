"""VL-Cache: rows that the text behind the images looks at, more where a layer looks widely (Tu et al., 2410.23317)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quant.kv.policy import Float32, LayerRows, ScorePolicy, attention, by_kv_head

_SPARSE_BELOW = np.float32(0.01)
"""Of a token's largest attention: what is less counts as none (section 4.1)."""
_LEAST_SHARE = 0.01
"""Of the prompt, that every layer keeps."""
_RECENT_SHARE = 0.1
"""Of what a layer keeps, that are its last rows (section 4.2)."""


class VLCache(ScorePolicy):
    """Scores by the attention of the tokens behind the last image; layers share the budget by density.

    A layer's density is the share of its causal attention that is at least 1 % of the token's largest, mean over heads.
    A layer keeps L * clamp(density / sum of densities * budget * layers, 0.01, 1) rows. A row's score is the attention
    that it gets in sum, mean over the query heads of a key/value head. Of the tokens behind the last image, the last W
    at most (their queries are known); without an image, the last W.
    """

    weighs_layers = True

    def weight(self, layer: LayerRows) -> float:
        """Return the layer's density."""
        seen = attention(layer, self._window(layer))
        is_dense = seen >= _SPARSE_BELOW * seen.max(axis=-1, keepdims=True)
        window, num_rows = seen.shape[1:]
        num_causal = window * num_rows - window * (window - 1) // 2
        return float(is_dense.sum(axis=(1, 2)).mean() / num_causal)

    def counts(self, weights: Sequence[float]) -> list[int]:
        """Return rows by density."""
        num_rows = self.budget.num_rows
        whole = self.budget.num_kept * len(weights) / sum(weights)
        least = max(int(num_rows * _LEAST_SHARE), 1)
        return [min(max(int(weight * whole), least), num_rows) for weight in weights]

    def score(self, layer: LayerRows, num_kept: int) -> Float32:
        """Return sums of attention; infinity for the last rows."""
        scores = by_kv_head(attention(layer, self._window(layer)).sum(axis=1), len(layer.keys))
        scores[:, layer.num_rows - max(int(num_kept * _RECENT_SHARE), 1) :] = np.inf
        return scores

    def _window(self, layer: LayerRows) -> int:
        known = layer.queries.shape[1]
        images = np.flatnonzero(layer.is_image)
        behind = layer.num_rows - 1 - images[-1] if len(images) else known
        return int(max(min(known, behind), 1))
