"""What the choice of one sequence's tokens depends on, besides the logits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from serving.engine.sampling.constraint import Constraint
from serving.engine.sampling.contrast import Scores, contrasted
from serving.engine.sampling.counts import TokenCounts
from serving.protocol import SamplingParams

_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 1e-30, 1e30
"""Float32 logits that differ are further apart than that, so that anything lower takes the likeliest token as well."""


class SamplingState:
    """One sequence's parameters, its generator, and what it has said; changed by `take` alone.

    The generator belongs to the sequence (Philox, a counter-based bit stream), so that the same seed and logits give
    the same tokens whoever shares the batch.

    Args:
        params: Filled from the bundle's defaults, and in range.
        prompt_ids: Count for a repetition penalty.
        end_ids: Tokens that end the answer, which `min_tokens` forbids for a while.
        constraint: The structure that the answer has to have.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 means all.
        top_p: Nucleus mass in (0, 1].
        min_p: Least chance, as a share of the likeliest token's; 0 means none.
        num_logprobs: How many of the likeliest tokens are told; None tells nothing.
        constraint: As given.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Iterable[int] = (),
        end_ids: Iterable[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        heat = params.temperature or 0.0
        self.temperature = min(max(heat, _LOWEST_TEMPERATURE), _HIGHEST_TEMPERATURE) if heat else 0.0
        self.top_k = params.top_k or 0
        self.top_p = 1.0 if params.top_p is None else params.top_p
        self.min_p = params.min_p or 0.0
        self.num_logprobs = params.top_logprobs
        self.constraint = constraint
        self._repetition = params.repetition_penalty or 1.0
        self._frequency, self._presence = params.frequency_penalty, params.presence_penalty
        is_penalised = self._repetition != 1 or self._frequency or self._presence
        self._counts = TokenCounts(prompt_ids) if is_penalised else None
        self._contrast = params.contrast
        self._other: Scores | None = None
        self._biased_ids = np.array([token_id for token_id, _ in params.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in params.logit_bias], np.float32)
        self._end_ids = np.array(list(end_ids), np.int64)
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        seed = None if params.seed is None else params.seed % 2**64  # callers may send negative integers
        self._generator = np.random.Generator(np.random.Philox(seed))
        self._drawn: float | None = None
        changes = len(self._biased_ids) or self._counts is not None or constraint is not None or params.contrast
        self._always_changes = bool(changes)
        self._is_greedy = self.temperature == 0 and self.num_logprobs is None and not changes

    @property
    def drawn(self) -> float:
        """The random number in [0, 1) that decides the next token; the same until `take`."""
        if self._drawn is None:
            self._drawn = float(self._generator.random())
        return self._drawn

    @property
    def takes_likeliest(self) -> bool:
        """True where the next token is that of the largest logit, and nobody asks for more of the logits."""
        return self._is_greedy and not self._forbids_end

    @property
    def changes_scores(self) -> bool:
        """True where `change` does something to the next row of logits."""
        return self._always_changes or self._forbids_end

    def hear(self, other: Scores) -> None:
        """Take note of [V] the scores of the next token behind the other prompt; they are copied."""
        self._other = other.copy()

    def change(self, scores: npt.NDArray[np.float32]) -> None:
        """Contrast, bias, penalise and forbid tokens of a row [V], in place, in Hugging Face's order.

        Raises:
            PocketVLMError: The structure allows nothing, or could not be followed.
            RuntimeError: Nothing was heard of the other prompt since the last token.
        """
        if self._contrast is not None:
            if self._other is None:
                raise RuntimeError("the scores behind the other prompt are not there")
            scores[:] = contrasted(scores, self._other, self._num_tokens, self._contrast)
        if len(self._biased_ids):
            scores[self._biased_ids] += self._biases
        if self._counts is not None:
            self._penalise(scores, self._counts)
        if self._forbids_end:
            scores[self._end_ids] = -np.inf
        if self.constraint is not None:
            # Three times as fast as to assign through a mask.
            scores[:] = np.where(self.constraint.allowed(len(scores)), scores, np.float32(-np.inf))

    def take(self, token_id: int) -> None:
        """Record the token that was chosen."""
        if self._counts is not None:
            self._counts.add(token_id)
        if self.constraint is not None:
            self.constraint.take(token_id)
        self._num_tokens += 1
        self._drawn = self._other = None

    @property
    def _forbids_end(self) -> bool:
        return self._num_tokens < self._min_tokens and bool(len(self._end_ids))

    def _penalise(self, scores: npt.NDArray[np.float32], counts: TokenCounts) -> None:
        """Apply the penalties for what was said: repetition's (prompt and answer), then the answer's own two."""
        ids, in_answer = counts.ids, counts.in_answer
        if ids.max(initial=0) >= len(scores):  # tokens that prompts hold and no answer can
            ids, in_answer = ids[ids < len(scores)], in_answer[ids < len(scores)]
        said = scores[ids]
        if self._repetition != 1:
            said = np.where(said > 0, said / np.float32(self._repetition), said * np.float32(self._repetition))
        said = said - np.float32(self._frequency) * in_answer - np.float32(self._presence) * (in_answer > 0)
        scores[ids] = said
