"""What the last layer before a cut attends to, computed again from its queries and keys: fused kernels do not tell."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from runtime.segmented_prompt import Cut

Float32 = npt.NDArray[np.float32]


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
    behind = np.where(np.tri(num_rows, dtype=np.bool_), np.float32(0), np.float32(-np.inf))
    mean = np.zeros((num_rows, num_rows), np.float32)
    for queries, keys in _heads(cut):
        mean += _softmax(queries @ keys.T / np.float32(temperature) + behind)
    return mean / np.float32(num_heads)


def _heads(cut: Cut) -> Iterator[tuple[Float32, Float32]]:
    """Yield the scaled queries [L, C] of each head, and the keys [L, C] that it reads."""
    num_heads, num_kv_heads, size = *cut.queries.shape[1:2], *cut.keys.shape[1:]
    for head in range(num_heads):
        yield cut.queries[:, head] * np.float32(size**-0.5), cut.keys[:, head * num_kv_heads // num_heads]


def _softmax(scores: Float32) -> Float32:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Float32 = raised / raised.sum(axis=-1, keepdims=True)
    return shares
