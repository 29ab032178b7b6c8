"""LOOK-M: text first, and images merged into what stays (Wan et al., arXiv 2406.18139, section 3)."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from quant.kv.h2o import column_sums
from quant.kv.keydiff import unit
from quant.kv.policy import Float32, LayerRows, Merged, Rows, ScorePolicy, Scores


class LookM(ScorePolicy):
    """Half of what is kept are the last rows, half those before them by attention in sum, all text before any image.

    Each image row that goes is merged into the kept row whose key is most like its own by cosine, in keys and in values
    (section 3.3); text that goes is lost. The paper sums over all tokens' queries, here it is the last W, and its code
    keeps all text, however much that is; here the budget holds.
    """

    def score(self, layer: LayerRows, num_kept: int) -> Scores:
        """Return sums of attention, above all images' for text; infinity for the last rows."""
        scores = column_sums(layer).astype(np.float64)  # what is added must not round small sums away
        scores[:, ~layer.is_image] += layer.queries.shape[1] + 1
        scores[:, layer.num_rows - num_kept // 2 :] = np.inf
        return scores

    def merged(self, layer: LayerRows, kept: Rows) -> Merged | None:
        """Return kept rows with what is left of images that go."""
        found = [self._merged_head(layer, head, rows) for head, rows in enumerate(kept)]
        keys, values = zip(*found, strict=True)
        return Merged(np.stack(keys), np.stack(values))

    def _merged_head(self, layer: LayerRows, head: int, kept: Rows) -> tuple[Float32, Float32]:
        goes = layer.is_image.copy()
        goes[kept] = False
        keys, values = layer.keys[head], layer.values[head]
        likeness = unit(keys[goes]) @ unit(keys[kept]).T
        nearest = likeness.argmax(axis=1)
        closeness = likeness.max(axis=1)[:, None]
        return (
            _means(keys[kept], nearest, self.left(keys[goes], keys[kept][nearest], closeness)),
            _means(values[kept], nearest, self.left(values[goes], values[kept][nearest], closeness)),
        )

    @abstractmethod
    def left(self, going: Float32, kept: Float32, closeness: Float32) -> Float32:
        """Return what rows that go [m, C] add to the kept rows [m, C] nearest to them, by cosine [m, 1]."""


class LookMPivotal(LookM):
    """Pivotal merging: k <- mean of k and of all (k + e) / 2, e the rows that go; the paper's best."""

    def left(self, going: Float32, kept: Float32, closeness: Float32) -> Float32:
        """Return the middle between both."""
        middle: Float32 = (going + kept) / np.float32(2)
        return middle


class LookMAveraged(LookM):
    """Averaged merging: k <- mean of k and of all e."""

    def left(self, going: Float32, kept: Float32, closeness: Float32) -> Float32:
        """Return the row itself."""
        return going


class LookMWeighted(LookM):
    """Weighted merging: k <- (k + sum of cos(k, e) e) / (1 + their number)."""

    def left(self, going: Float32, kept: Float32, closeness: Float32) -> Float32:
        """Return the row by its likeness."""
        weighted: Float32 = going * closeness
        return weighted


def _means(kept: Float32, nearest: Rows, left: Float32) -> Float32:
    """Return rows [n, C], each the mean of itself and of what is left to it."""
    order = np.argsort(nearest, kind="stable")
    places, starts, counts = np.unique(nearest[order], return_index=True, return_counts=True)
    means = kept.copy()
    if len(places):
        totals = means[places] + np.add.reduceat(left[order], starts, axis=0)
        means[places] = totals / (counts[:, None] + 1).astype(np.float32)
    return means
