"""What the choice of one sequence's tokens depends on, besides the logits."""

from __future__ import annotations

import numpy as np

from serving.protocol import SamplingParams


class SamplingState:
    """One sequence's parameters and its generator; changed by `take` alone.

    The generator belongs to the sequence (Philox, a counter-based bit stream), so that the same seed and logits give
    the same tokens whoever shares the batch.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 means all.
        top_p: Nucleus mass in (0, 1].
    """

    def __init__(self, params: SamplingParams) -> None:
        self.temperature = params.temperature or 0.0
        self.top_k = params.top_k or 0
        self.top_p = 1.0 if params.top_p is None else params.top_p
        seed = None if params.seed is None else params.seed % 2**64  # callers may send negative integers
        self._generator = np.random.Generator(np.random.Philox(seed))
        self._drawn: float | None = None

    @property
    def drawn(self) -> float:
        """The random number in [0, 1) that decides the next token; the same until `take`."""
        if self._drawn is None:
            self._drawn = float(self._generator.random())
        return self._drawn

    def take(self, token_id: int) -> None:
        """Record the token that was chosen."""
        del token_id
        self._drawn = None
