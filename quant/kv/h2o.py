"""H2O: heavy hitters and the last rows (Zhang et al., arXiv 2306.14048, section 4)."""

from __future__ import annotations

import numpy as np

from quant.kv.policy import Float32, LayerRows, ScorePolicy, attention, by_kv_head


class H2O(ScorePolicy):
    """Half of what is kept are the last rows, half those before them that got most attention in sum.

    The paper sums over the queries of all tokens, and goes on while answers grow; here it is the last W tokens of the
    prompt (attention's kernels give no scores of all), and rows are chosen once. Of query heads that share a key/value
    head, the mean.
    """

    def score(self, layer: LayerRows, num_kept: int) -> Float32:
        """Return sums of attention; infinity for the last rows."""
        scores = column_sums(layer)
        scores[:, layer.num_rows - num_kept // 2 :] = np.inf
        return scores


def column_sums(layer: LayerRows) -> Float32:
    """Return [K, L]: the attention that each row gets of the last W tokens in sum, mean over a group of query heads."""
    return by_kv_head(attention(layer, layer.queries.shape[1]).sum(axis=1), len(layer.keys))
