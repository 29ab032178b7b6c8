"""One request on the engine thread."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serving.engine.sampler import Sampler
from serving.protocol import SamplingParams


@dataclass(eq=False)
class Sequence:
    """A prompt, the tokens sampled after it, and its place in the cache.

    Attributes:
        request_id: The caller's name for it.
        prompt_ids: [n] int64, never empty; image placeholders included.
        sampling: How its tokens are chosen.
        eos_token_ids: Any of them ends it.
        image_rows: [m, D] float32, one row per placeholder in the prompt, in order; None without images.
        sampler: Made from `sampling`; its generator is the sequence's own.
        submitted_s: Monotonic time; set by `Engine.submit`.
        started_s: Monotonic time at which its first prompt chunk ran; set by the engine thread.
        slot: Set by the scheduler while the sequence runs.
        num_cached: Rows of the slot that are written; advanced by the scheduler.
        output_ids: Sampled tokens, an end token included; appended by the scheduler.
    """

    request_id: str
    prompt_ids: npt.NDArray[np.int64]
    sampling: SamplingParams
    eos_token_ids: SequenceOf[int]
    image_rows: npt.NDArray[np.float32] | None = None
    sampler: Sampler = field(init=False)
    submitted_s: float = 0.0
    started_s: float = 0.0
    slot: int | None = None
    num_cached: int = 0
    output_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.sampling)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def is_prefilled(self) -> bool:
        """True when every prompt token is in the cache."""
        return self.num_cached >= self.num_prompt_tokens
