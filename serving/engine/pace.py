"""How much of a prompt runs between two decode steps, by what both took until now."""

from __future__ import annotations

FEWEST_TOKENS = 32
"""Of a chunk beside running answers: below, reading the weights once per chunk costs more than the tokens."""
_NEWEST_SHARE = 0.3
"""Of the newest measurement in a mean: a few steps tell of a change, and one that was disturbed counts little."""


class Pace:
    """Chunks that keep the gap between two tokens of a running answer below a target, as far as it can be kept.

    Args:
        chunk_tokens: Most tokens of a prompt in one run, and what is run while nobody waits for a token.
        most_gap_s: Target for a chunk and a decode step together.
    """

    def __init__(self, chunk_tokens: int, most_gap_s: float) -> None:
        self._chunk_tokens = chunk_tokens
        self._most_gap_s = most_gap_s
        self._token_s: float | None = None
        self._step_s = 0.0
        self._since_step_s = 0.0

    def chunk_tokens(self, *, beside_answers: bool) -> int:
        """Return how many tokens of a prompt run next at most."""
        if not beside_answers or self._token_s is None:
            return self._chunk_tokens
        room_s = self._most_gap_s - self._step_s
        if room_s >= self._chunk_tokens * self._token_s:
            return self._chunk_tokens
        return min(max(int(room_s / self._token_s), FEWEST_TOKENS), self._chunk_tokens)

    def has_room_for(self, num_tokens: int) -> bool:
        """Return whether so much of a prompt fits before the next step, beside what ran since the last."""
        if self._token_s is None:
            return False
        return self._since_step_s + num_tokens * self._token_s + self._step_s <= self._most_gap_s

    @property
    def spare_s(self) -> float:
        """How long something else than a prompt may take between two steps."""
        return max(self._most_gap_s - self._step_s, 0.0)

    def note_chunk(self, num_tokens: float, took_s: float) -> None:
        """Record how long a prompt's chunk took; one that ran through a part of the layers counts in part."""
        each_s = took_s / num_tokens
        self._since_step_s += took_s
        self._token_s = each_s if self._token_s is None else self._mean(self._token_s, each_s)

    def note_step(self, took_s: float) -> None:
        """Record how long a decode step took."""
        self._since_step_s = 0.0
        self._step_s = self._mean(self._step_s, took_s) if self._step_s else took_s

    def _mean(self, before_s: float, newest_s: float) -> float:
        return before_s + _NEWEST_SHARE * (newest_s - before_s)
