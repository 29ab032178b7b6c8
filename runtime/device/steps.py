"""A decoder's runs over a cache in a device's memory: inputs and outputs stay there, and steps are captured.

A step is captured for every batch size that occurs, never padded: a row that is there for its shape alone would write
its token into a slot that belongs to somebody (decision 20). A prompt's run is padded to one of a few lengths and
captured for each of them and every slot: what it writes behind its own rows is in its own slot, and overwritten by what
follows (decision 27).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bundle import tensors
from runtime.captured_runs import HOST_INPUTS, PROMPT_SLOTS, PROMPT_TOKENS, is_of_device_form
from runtime.fixed_run import FixedRun, device_value
from runtime.graph import Array
from runtime.session import Session
from runtime.settings import Provider

_MOST_SINGLE_SHAPES = 8
"""Kept at once of runs that are launched operator by operator; each holds a prompt's embeddings, about 1 MB."""

BindStates = Callable[[Any, int, int], None]
"""Binds the states of slots `first ... first + size - 1` to a run's inputs and outputs."""
_Shape = tuple[Session, int, tuple[int, ...], int]
"""Graph, first slot, [B, T, D], N."""


class DeviceSteps:
    """Runs of decoders that tell the host nothing but logits and ids.

    Logits of one row a sequence lie in one memory, whatever run they are of, and are valid until the next one: with
    memory of its own for every batch size, 256 sequences of a small model would take 6 GiB.

    Args:
        bind_states: Of the cache.
        num_slots: Of the cache.
        vocab_size: V.
        device: Where graphs run.
    """

    def __init__(self, bind_states: BindStates, num_slots: int, vocab_size: int, device: Provider) -> None:
        self._bind_states = bind_states
        self._vocab_size = vocab_size
        self._logits = device_value(np.zeros((num_slots, 1, vocab_size), np.float32), device)
        self._captured: dict[_Shape, FixedRun] = {}
        self._single: OrderedDict[_Shape, FixedRun] = OrderedDict()

    def run(self, session: Session, first_slot: int, feeds: Mapping[str, Array], *, is_captured: bool) -> FixedRun:
        """Run a batch and return the run; its outputs are `logits` [B, N, V] and, where the graph has it, `greedy_ids`.

        Args:
            session: The decoder of the phase.
            first_slot: Of the batch.
            feeds: Its inputs, states aside.
            is_captured: Capture the run when its shape first occurs: it comes again and again, and what the host reads
                of it is the same every time.
        """
        shape = session, first_slot, feeds[tensors.INPUTS_EMBEDS].shape, feeds[tensors.LOGITS_ROWS].shape[1]
        found = self._captured.get(shape) or self._single.get(shape) or self._made(shape, feeds, is_captured)
        found.run(feeds)
        return found

    def _made(self, shape: _Shape, feeds: Mapping[str, Array], is_captured: bool) -> FixedRun:
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
            host_inputs=HOST_INPUTS,
            is_captured=is_captured,
            rooms={tensors.LOGITS: self._logits} if num_wanted == 1 else None,
        )
        self._bind_states(made.io, first_slot, num_runs)
        if is_captured:
            self._captured[shape] = made
            return made
        self._single[shape] = made
        if len(self._single) > _MOST_SINGLE_SHAPES:
            self._single.popitem(last=False)
        return made


def captured_tokens(num_tokens: int, slot: int, room_rows: int) -> int | None:
    """Return the length to which a prompt's run is padded, so that it can be a captured one; None where none fits.

    Args:
        num_tokens: Of the run, at least 2.
        slot: That it is in.
        room_rows: That the slot has behind what it holds.
    """
    if slot >= PROMPT_SLOTS:
        return None
    return next((size for size in PROMPT_TOKENS if num_tokens <= size <= room_rows), None)


def has_greedy_ids(session: Session) -> bool:
    """Return whether a decoder finds the largest logits itself."""
    return any(spec.name == tensors.GREEDY_IDS for spec in session.component.optional_outputs)


def runs_on_device(session: Session) -> bool:
    """Return whether a decoder is of the form that leaves nothing to be computed on the host during a run."""
    return is_of_device_form(session.component)
