"""The choice of tokens where nobody asks for more than the likeliest, and the graph has found it."""

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
    """Return each row's next token without a look at its logits; None where some row, or the graph, wants that look.

    Args:
        logits: [B, V] of a step.
        states: Of the B sequences; each has taken its choice.
    """
    if logits.greedy_ids is None or not all(state.takes_likeliest for state in states):
        return None
    choices = [Choice(token_id) for token_id in logits.greedy_ids.tolist()]
    for choice, state in zip(choices, states, strict=True):
        state.take(choice.token_id)
    return choices
