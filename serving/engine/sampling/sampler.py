"""The choice of tokens from a batch's logits; no row sees another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from bundle.errors import MachineError, PocketVLMError
from serving.engine.faults import explained
from serving.engine.sampling.candidates import candidates, place_of
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.likelihood import Likelihood
from serving.engine.sampling.state import SamplingState

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]


class Sampler:
    """Draws tokens, each row by its own sequence's parameters.

    In Hugging Face's order: bias, penalties, forbidden tokens; then greedy at temperature 0, else temperature, top_k,
    top_p, min_p. What touches every token of the vocabulary runs over all rows at once, the rest row by row.
    """

    def choose(self, logits: Floats, states: Sequence[SamplingState]) -> list[Choice | PocketVLMError]:
        """Return each row's next token, or why it has none; a row that fails changes no other.

        Args:
            logits: [B, V], overwritten.
            states: Of the B sequences; each with a choice has taken it.
        """
        return _Step(logits, states).outcomes()


class _Step:
    """One batch on its way from logits to choices; a row that fails on the way is passed over from there on."""

    def __init__(self, logits: Floats, states: Sequence[SamplingState]) -> None:
        self._scores = logits
        self._states = states
        self._failed: dict[int, PocketVLMError] = {}
        self._choices: dict[int, Choice] = {}

    def outcomes(self) -> list[Choice | PocketVLMError]:
        """Return what each row comes to."""
        all_rows = range(len(self._states))
        largest = self._scores.max(axis=1).tolist()
        self._each(all_rows, lambda row: _check_number(largest[row]))
        likelihood = Likelihood(
            self._scores,
            {row: wanted for row in self._left(all_rows) if (wanted := self._states[row].num_logprobs) is not None},
        )
        changing = [row for row in self._left(all_rows) if self._states[row].changes_scores]
        self._each(changing, lambda row: self._states[row].change(self._scores[row]))
        chosen = self._chosen()
        self._each(chosen, lambda row: self._take(row, chosen[row], likelihood))
        return [self._failed.get(row) or self._choices[row] for row in all_rows]

    def _chosen(self) -> dict[int, int]:
        """Return the tokens of the rows that are left."""
        likeliest = self._scores.argmax(axis=1)
        chosen = {row: int(likeliest[row]) for row in self._left(range(len(self._states)))}
        self._each(chosen, lambda row: _check_allowed(self._scores[row, chosen[row]]))
        drawing = [row for row in self._left(chosen) if self._states[row].temperature]
        if drawing:
            weights = self._weights(drawing, likeliest)
            places = {row: place for place, row in enumerate(drawing)}
            self._each(drawing, lambda row: chosen.update({row: _drawn(weights[places[row]], self._states[row])}))
        return {row: chosen[row] for row in self._left(chosen)}

    def _weights(self, rows: list[int], likeliest: npt.NDArray[np.int64]) -> Floats:
        """Return [R, V] unnormalised chances at the rows' temperatures, the largest of each row 1."""
        weights = self._scores[rows]
        weights -= self._scores[rows, likeliest[rows]][:, None]
        with np.errstate(over="ignore", under="ignore"):  # near 0 degrees, all but the likeliest fall to minus infinity
            weights /= np.array([self._states[row].temperature for row in rows], np.float32)[:, None]
            return np.exp(weights, out=weights)

    def _take(self, row: int, token_id: int, likelihood: Likelihood) -> None:
        logprobs = likelihood.of(row, token_id)
        self._states[row].take(token_id)
        self._choices[row] = Choice(token_id, logprobs)

    def _left(self, rows: Iterable[int]) -> list[int]:
        return [row for row in rows if row not in self._failed]

    def _each(self, rows: Iterable[int], work: Callable[[int], None]) -> None:
        """Do a piece of work for every row that is left; what it raises is that row's own failure."""
        for row in self._left(rows):
            try:
                work(row)
            except Exception as error:
                if not isinstance(error, PocketVLMError):
                    logger.exception("the choice of a token failed")
                self._failed[row] = explained(error)


def _check_number(largest: float) -> None:
    if not np.isfinite(largest):
        raise MachineError(
            f"the decoder gave {largest} as its largest logit: its weights or kernels are broken on this machine. "
            "Check the bundle with: pocketvlm inspect BUNDLE"
        )


def _check_allowed(score: float) -> None:
    if not np.isfinite(score):
        raise MachineError(
            f"no token may follow: the likeliest that is allowed scores {score}. Ask for less by logit_bias, penalties "
            "or structured output"
        )


def _drawn(weights: Floats, state: SamplingState) -> int:
    """Return a token drawn with the chances of those that may be drawn."""
    ids, kept = candidates(weights, state)
    place = place_of(kept, state.drawn)
    return place if ids is None else int(ids[place])
