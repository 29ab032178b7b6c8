"""LagKV: rows that the next block does not foretell (Liang et al., arXiv 2504.04704, section 3)."""

from __future__ import annotations

import numpy as np

from quant.kv.policy import Float32, LayerRows, ScorePolicy

_SINKS = 4
_LAG = 128
"""Rows of a block; both numbers are the paper's defaults."""


class LagKV(ScorePolicy):
    """Scores rows within blocks of 128 by how widely their channels spread where the next block sets the scale.

    The first 4 rows stay. Behind them, each block but the last is put between the least and largest of each channel in
    the next block; a row's score is the standard deviation over its channels, softmax over the block, the mean of keys
    and values, and then its rank within the block. The last block and what is left over stay before all ranks. Prompts
    of fewer than 4 + 2 * 128 rows keep the first 4 and the last ones. As kvpress's LagKVPress.

    Where a channel of the next block is constant it counts 0.
    """

    def score(self, layer: LayerRows, num_kept: int) -> Float32:
        """Return ranks in [0, 1), 1 for the last rows, infinity for the first 4."""
        num_heads, num_rows = layer.keys.shape[:2]
        scores = np.ones((num_heads, num_rows), np.float32)
        scores[:, :_SINKS] = np.inf
        if num_rows >= _SINKS + 2 * _LAG:
            num_blocks = (num_rows - _SINKS) // _LAG
            of_keys, of_values = (self._spread(rows, num_blocks) for rows in (layer.keys, layer.values))
            ranks = (of_keys + of_values).argsort(axis=-1, kind="stable").argsort(axis=-1, kind="stable")
            scores[:, _SINKS : _SINKS + ranks[0].size] = ranks.reshape(num_heads, -1) / _LAG
        return scores

    def _spread(self, rows: Float32, num_blocks: int) -> Float32:
        """Return [K, blocks - 1, 128] of keys or values [K, L, C]."""
        num_heads, _, size = rows.shape
        blocks = rows[:, _SINKS : _SINKS + num_blocks * _LAG].reshape(num_heads, num_blocks, _LAG, size)
        following = blocks[:, 1:]
        least, most = following.min(axis=2, keepdims=True), following.max(axis=2, keepdims=True)
        reach = np.where(most > least, most - least, np.float32(np.inf))
        spread = ((blocks[:, :-1] - least) / reach).std(axis=-1, ddof=1)
        shifted = np.exp(spread - spread.max(axis=-1, keepdims=True))
        shares: Float32 = shifted / shifted.sum(axis=-1, keepdims=True)
        return shares
