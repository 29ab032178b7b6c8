"""What the last layer before a cut attends to, computed again from its queries and keys: fused kernels do not tell."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from runtime.segmented_prompt import Cut

Float32 = npt.NDArray[np.float32]
_BLOCK_ROWS = 128
_FAINTEST = -60.0
"""e^-60 is nothing beside 1; numbers without a leading bit, further down, take a processor a hundred times as long."""


def last_row(cut: Cut) -> Float32:
    """Return [L] what the last token attends to, the mean over heads; it sees all L."""
    mean: Float32 = np.mean([_softmax(queries[-1:] @ keys.T)[0] for queries, keys in _heads(cut)], axis=0)
    return mean


def all_rows(cut: Cut, temperature: float) -> Float32:
    """Return [L, L] what each token attends to of those up to itself, the mean over heads.

    Args:
        cut: Where one segment ends.
        temperature: Of the softmax; 1 is the layer's own.
    """
    num_rows, num_heads = cut.queries.shape[:2]
    mean = np.zeros((num_rows, num_rows), np.float32)
    for start in range(0, num_rows, _BLOCK_ROWS):  # of a block, what is behind its last row need not be computed
        rows, seen = slice(start, start + _BLOCK_ROWS), slice(min(start + _BLOCK_ROWS, num_rows))
        behind = ~np.tri(seen.stop - start, dtype=np.bool_)
        for queries, keys in _heads(cut):
            scores = (queries[rows] / np.float32(temperature)) @ keys[seen].T
            scores[:, start:][behind] = -np.inf
            mean[rows, seen] += _softmax(scores)
    mean /= np.float32(num_heads)
    return mean


def _heads(cut: Cut) -> Iterator[tuple[Float32, Float32]]:
    """Yield the scaled queries [L, C] of each head, and the keys [L, C] that it reads."""
    num_heads, num_kv_heads, size = *cut.queries.shape[1:2], *cut.keys.shape[1:]
    for head in range(num_heads):
        yield cut.queries[:, head] * np.float32(size**-0.5), cut.keys[:, head * num_kv_heads // num_heads]


def _softmax(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the softmax over the last axis, in the place of the scores."""
    scores -= scores.max(axis=-1, keepdims=True)
    scores[scores < _FAINTEST] = -np.inf
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
