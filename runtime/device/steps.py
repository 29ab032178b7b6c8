"""A decoder's runs over a cache in a device's memory: inputs and outputs stay there, and steps are captured.

A step is captured for every batch size that occurs, never padded: a row that is there for its shape alone would write
its token into a slot that belongs to somebody (decision 20).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from bundle import tensors
from runtime.fixed_run import FixedRun
from runtime.graph import Array
from runtime.session import Session

_MOST_PROMPT_SHAPES = 8
"""Kept at once; each holds a prompt's embeddings on the device, about 1 MB."""

BindStates = Callable[[Any, int, int], None]
"""Binds the states of slots `first ... first + size - 1` to a run's inputs and outputs."""
_Shape = tuple[Session, int, tuple[int, ...], int]
"""Graph, first slot, [B, T, D], N."""


class DeviceSteps:
    """Runs of decoders that tell the host nothing but logits and ids.

    Args:
        bind_states: Of the cache.
        vocab_size: V.
    """

    def __init__(self, bind_states: BindStates, vocab_size: int) -> None:
        self._bind_states = bind_states
        self._vocab_size = vocab_size
        self._steps: dict[_Shape, FixedRun] = {}
        self._prompts: OrderedDict[_Shape, FixedRun] = OrderedDict()

    def run(self, session: Session, first_slot: int, feeds: Mapping[str, Array]) -> FixedRun:
        """Run a batch and return the run; its outputs are `logits` [B, N, V] and, where the graph has it, `greedy_ids`.

        A single token per sequence, from the first slot on, is the run that comes again and again: it is captured.
        """
        embeds, rows = feeds[tensors.INPUTS_EMBEDS], feeds[tensors.LOGITS_ROWS]
        shape = session, first_slot, embeds.shape, rows.shape[1]
        is_step = first_slot == 0 and embeds.shape[1] == rows.shape[1] == 1
        found = self._steps.get(shape) or self._prompts.get(shape) or self._made(shape, feeds, is_step)
        found.run(feeds)
        return found

    def _made(self, shape: _Shape, feeds: Mapping[str, Array], is_step: bool) -> FixedRun:
        session, first_slot, (num_runs, *_), num_wanted = shape
        outputs: dict[str, tuple[tuple[int, ...], str]] = {
            tensors.LOGITS: ((num_runs, num_wanted, self._vocab_size), "float32")
        }
        if has_greedy_ids(session):
            outputs[tensors.GREEDY_IDS] = (num_runs, num_wanted), "int64"
        made = FixedRun(
            session.graph,
            feeds,
            outputs,
            host_inputs=frozenset({tensors.TOTAL_SEQUENCE_LENGTH}),
            is_captured=is_step,
        )
        self._bind_states(made.io, first_slot, num_runs)
        if is_step:
            self._steps[shape] = made
            return made
        self._prompts[shape] = made
        if len(self._prompts) > _MOST_PROMPT_SHAPES:
            self._prompts.popitem(last=False)
        return made


def has_greedy_ids(session: Session) -> bool:
    """Return whether a decoder finds the largest logits itself."""
    return any(spec.name == tensors.GREEDY_IDS for spec in session.component.optional_outputs)


def runs_on_device(session: Session) -> bool:
    """Return whether a decoder is of the form that leaves nothing to be computed on the host during a run."""
    return any(spec.name == tensors.TOTAL_SEQUENCE_LENGTH for spec in session.component.inputs)
