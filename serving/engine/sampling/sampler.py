"""The choice of tokens from a batch's logits; no row sees another."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bundle.errors import MachineError, PocketVLMError
from serving.engine.faults import explained
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.state import SamplingState

logger = logging.getLogger(__name__)

_FIRST_NUCLEUS = 256  # likeliest tokens in which a nucleus is searched before the whole vocabulary is sorted


class Sampler:
    """Draws tokens: greedy at temperature 0, else temperature, top_k, top_p, in Hugging Face's order."""

    def choose(self, logits: npt.NDArray[np.float32], states: Sequence[SamplingState]) -> list[Choice | PocketVLMError]:
        """Return each row's next token, or why it has none; a row that fails changes no other.

        Args:
            logits: [B, V].
            states: Of the B sequences; each with a choice has taken it.
        """
        return [self._try_choose(row, state) for row, state in zip(logits, states, strict=True)]

    def _try_choose(self, logits: npt.NDArray[np.float32], state: SamplingState) -> Choice | PocketVLMError:
        try:
            token_id = _chosen(logits, state)
            state.take(token_id)
        except Exception as error:
            if not isinstance(error, PocketVLMError):
                logger.exception("the choice of a token failed")
            return explained(error)
        return Choice(token_id)


def candidates(
    logits: npt.NDArray[np.float32], state: SamplingState
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the token ids that may be drawn at a temperature above 0, and their unnormalised probabilities."""
    below = logits.astype(np.float64) - float(logits.max())
    with np.errstate(over="ignore"):  # at a temperature near 0, all but the likeliest fall to minus infinity
        weights = np.exp(below / state.temperature)
    top_k, top_p = state.top_k, state.top_p
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


def _chosen(logits: npt.NDArray[np.float32], state: SamplingState) -> int:
    likeliest = int(np.argmax(logits))
    if not np.isfinite(logits[likeliest]):
        raise MachineError(
            f"the decoder gave {logits[likeliest]} as its largest logit: its weights or kernels are broken "
            "on this machine. Check the bundle with: pocketvlm inspect BUNDLE"
        )
    if state.temperature == 0:
        return likeliest
    ids, weights = candidates(logits, state)
    cumulative = np.cumsum(weights)
    drawn = state.drawn * cumulative[-1]
    return int(ids[min(int(np.searchsorted(cumulative, drawn, side="right")), len(ids) - 1)])


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
