"""The choice of tokens where nobody asks for more than the likeliest."""

from __future__ import annotations

from collections.abc import Sequence

from bundle.errors import PocketVLMError
from runtime.step_logits import StepLogits
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.sampler import Sampler
from serving.engine.sampling.state import SamplingState


def choices(sampler: Sampler, logits: StepLogits, states: Sequence[SamplingState]) -> list[Choice | PocketVLMError]:
    """Return each row's next token, or why it has none; logits come to the host only where some row needs them."""
    return [*(likeliest(logits, states) or sampler.choose(logits.rows(), states))]


def likeliest(logits: StepLogits, states: Sequence[SamplingState]) -> list[Choice] | None:
    """Return each row's next token, that of the largest logit; None where some row wants more than that, or has none.

    Args:
        logits: [B, V] of a step.
        states: Of the B sequences; each has taken its choice.
    """
    if not all(state.takes_likeliest for state in states):
        return None
    ids = logits.likeliest_ids().tolist()
    if min(ids) < 0:  # the sampler says which rows' logits are no numbers
        return None
    for token_id, state in zip(ids, states, strict=True):
        state.take(token_id)
    return [Choice(token_id) for token_id in ids]
