"""The choice of a token from one row of logits; nothing here sees the rest of the batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bundle.errors import MachineError
from serving.protocol import SamplingParams

_FIRST_NUCLEUS = 256  # likeliest tokens in which a nucleus is searched before the whole vocabulary is sorted


class Sampler:
    """Draws one sequence's tokens: greedy at temperature 0 or None, else temperature, then top_k, then top_p.

    The order is Hugging Face's. The generator belongs to the sequence (Philox, a counter-based bit stream), so that
    the same seed and logits give the same tokens whoever shares the batch.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._temperature = params.temperature or 0.0
        self._top_k = params.top_k or 0
        self._top_p = 1.0 if params.top_p is None else params.top_p
        seed = None if params.seed is None else params.seed % 2**64  # callers may send negative integers
        self._generator = np.random.Generator(np.random.Philox(seed))

    def __call__(self, logits: npt.NDArray[np.float32]) -> int:
        """Return the next token id.

        Args:
            logits: [V], one row.

        Raises:
            MachineError: The logits are not numbers.
        """
        likeliest = int(np.argmax(logits))
        if not np.isfinite(logits[likeliest]):
            raise MachineError(
                f"the decoder gave {logits[likeliest]} as its largest logit: its weights or kernels are broken "
                "on this machine. Check the bundle with: pocketvlm inspect BUNDLE"
            )
        if self._temperature == 0:
            return likeliest
        ids, weights = self.candidates(logits)
        cumulative = np.cumsum(weights)
        drawn = self._generator.random() * cumulative[-1]
        return int(ids[min(int(np.searchsorted(cumulative, drawn, side="right")), len(ids) - 1)])

    def candidates(self, logits: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the token ids that may be drawn at a temperature above 0, and their unnormalised probabilities."""
        below = logits.astype(np.float64) - float(logits.max())
        with np.errstate(over="ignore"):  # at a temperature near 0, all but the likeliest fall to minus infinity
            weights = np.exp(below / self._temperature)
        top_k, top_p = self._top_k, self._top_p
        if not top_k and top_p >= 1:
            return np.arange(len(weights)), weights
        ids = _largest(weights, top_k or _FIRST_NUCLEUS)
        if top_p >= 1:
            return ids, weights[ids]
        if top_k:
            return _nucleus(ids, weights[ids], top_p * weights[ids].sum())
        mass = top_p * weights.sum()
        if weights[ids].sum() < mass:
            ids = _largest(weights, len(weights))
        return _nucleus(ids, weights[ids], mass)


def _largest(weights: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Return the ids of the `count` largest weights, largest first, lower ids first among equals of those chosen."""
    if count >= len(weights):
        return np.argsort(-weights, kind="stable")
    chosen = np.sort(np.argpartition(-weights, count - 1)[:count])
    ordered: npt.NDArray[np.int64] = chosen[np.argsort(-weights[chosen], kind="stable")]
    return ordered


def _nucleus(
    ids: npt.NDArray[np.int64], weights: npt.NDArray[np.float64], mass: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the shortest head of the ranking whose weights reach `mass`; never empty."""
    count = min(int(np.searchsorted(np.cumsum(weights), mass)) + 1, len(ids))
    return ids[:count], weights[:count]
