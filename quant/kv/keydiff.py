"""KeyDiff: rows whose keys are unlike the mean key (Park et al., arXiv 2504.15364, section 3.2)."""

from __future__ import annotations

import numpy as np

from quant.kv.policy import Float32, LayerRows, ScorePolicy

_TINY = np.float32(1e-12)


class KeyDiff(ScorePolicy):
    """Scores a row by -cos(k, anchor), the anchor being the mean of a head's keys at unit length.

    Over the whole prompt at once, as kvpress's KeyDiffPress; the paper goes block by block.
    """

    def score(self, layer: LayerRows, num_kept: int) -> Float32:
        """Return the negative cosines."""
        keys = unit(layer.keys)
        anchor = unit(keys.mean(axis=1, keepdims=True))
        cosines: Float32 = (keys @ anchor.transpose(0, 2, 1))[..., 0]
        return -cosines


def unit(vectors: Float32) -> Float32:
    """Return vectors [..., C] at unit length; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Float32 = vectors / np.maximum(lengths, _TINY)
    return scaled
