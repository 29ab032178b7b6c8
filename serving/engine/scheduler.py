"""Which tokens run next: prompts in chunks, answers in one batch, in turns. No tensors, no threads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.manifest import RunPhase
from runtime.cache_shape import CacheShape
from runtime.chunks import next_chunk
from serving.engine.sequence import Sequence
from serving.engine.slots import Move, Slots
from serving.protocol import FinishReason


@dataclass(frozen=True)
class Row:
    """One sequence's part of a batch: tokens `start ... end - 1` of its ids."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        """True when nothing of the sequence is left to be read, so that a token can be sampled."""
        return self.end == len(self.sequence.ids)


@dataclass(frozen=True)
class Keep:
    """Rows of a slot that stay, all others of the length group being dropped before anything runs.

    Attributes:
        slot: Of the sequence.
        group: The length group.
        rows: Those kept, which move to the front in this order.
    """

    slot: int
    group: int
    rows: npt.NDArray[np.int64]


Change = Move | Keep
"""What is done to the cache between two steps."""


@dataclass(frozen=True)
class Batch:
    """What is run in one step.

    Attributes:
        phase: Whether the tokens are a prompt's or were sampled; decides the graph.
        rows: Of one length, in neighbouring slots, by slot.
    """

    phase: RunPhase
    rows: tuple[Row, ...]

    @property
    def sequences(self) -> list[Sequence]:
        """Whose tokens run."""
        return [row.sequence for row in self.rows]


class Scheduler:
    """Sequences by state: waiting for a slot, having their prompt run, or decoding. Used by one thread.

    A prompt chunk and a decode step take turns, so that a long prompt slows the running answers but never stops them.
    Prompts go first come, first served. A slot is as long as the context, so a running sequence never has to give way;
    `preempt` is for whoever wants its place.
    """

    def __init__(self, shape: CacheShape, chunk_tokens: int) -> None:
        self._capacity_tokens = shape.capacity_tokens
        self._chunk_tokens = chunk_tokens
        self._slots = Slots(shape.num_slots)
        self._waiting: deque[Sequence] = deque()
        self._changes: list[Change] = []
        self._prompt_was_last = False

    @property
    def num_running(self) -> int:
        """Sequences with a slot."""
        return len(self._slots.decoding) + (self._slots.filling is not None)

    @property
    def num_cached_rows(self) -> int:
        """Rows in use, over all slots: of each sequence, those of its longest length group."""
        filling = self._slots.filling
        running = [*self._slots.decoding, *([filling] if filling else [])]
        return sum(sequence.num_rows for sequence in running)

    @property
    def has_work(self) -> bool:
        """True while any sequence is unfinished."""
        return bool(self._waiting or self.num_running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its prompt and one more token fit a slot, which the caller has checked."""
        self._waiting.append(sequence)

    def schedule(self) -> Batch | None:
        """Return what to run next, once the changes that are due are made; None when nothing is left."""
        if self._waiting and self._slots.has_room:
            self._slots.seat(self._waiting.popleft())
        filling, decoding = self._slots.filling, self._slots.decoding
        if filling is None and not decoding:
            return None
        self._prompt_was_last = filling is not None and not (decoding and self._prompt_was_last)
        if filling is not None and self._prompt_was_last:
            return self._next_chunk(filling)
        rows = (Row(sequence, sequence.num_run, sequence.num_run + 1) for sequence in decoding)
        return Batch("step", tuple(rows))

    def take_changes(self) -> tuple[Change, ...]:
        """Return the copies and drops of rows that are due, in order; whoever runs batches makes them first.

        They are no part of a batch: one that fails must not take with it what other sequences' rows depend on.
        """
        changes, self._changes = (*self._changes, *self._slots.take_moves()), []
        return changes

    def _next_chunk(self, sequence: Sequence) -> Batch:
        """Return the next tokens of a sequence that has more than one to be read.

        A sequence that was preempted has sampled tokens among them: those are read by the graph that read them first.
        """
        start, num_prompt = sequence.num_run, sequence.num_prompt_tokens
        is_prompt = start < num_prompt
        left = (num_prompt if is_prompt else len(sequence.ids) - 1) - start
        row = Row(sequence, start, start + next_chunk(left, self._chunk_tokens))
        return Batch("prompt" if is_prompt else "step", (row,))

    def advance(self, batch: Batch) -> None:
        """Record that a batch was run."""
        for row in batch.rows:
            row.sequence.advance(row.end - row.start)
            if row.sequence is self._slots.filling and row.sequence.is_decoding:
                self._slots.settle()

    def append(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        """Record a sampled token; free the slot and return the reason when it was the last."""
        sequence.append(token_id)
        reason = self._finish_reason(sequence, token_id)
        if reason is not None:
            self.remove(sequence)
        elif sequence is self._slots.filling:
            self._slots.settle()
        return reason

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        if token_id in sequence.eos_token_ids:
            return "stop"
        is_full = sequence.num_rows >= self._capacity_tokens
        return "length" if is_full or sequence.num_output_tokens == sequence.sampling.max_tokens else None

    def keep(self, sequence: Sequence, group: int, rows: npt.NDArray[np.int64]) -> None:
        """Drop all rows of a running sequence's length group but some; its positions stay as they are.

        Raises:
            ValueError: The sequence has no slot, or a row is none of its own.
        """
        if sequence.slot is None or not all(0 <= row < sequence.rows[group] for row in rows.tolist()):
            raise ValueError(f"{sequence.request_id} in slot {sequence.slot} does not hold all of the rows {rows}")
        self._changes += [*self._slots.take_moves(), Keep(sequence.slot, group, rows)]
        sequence.rows[group] = len(rows)

    def preempt(self, sequence: Sequence) -> bool:
        """Take a sequence's slot and let it wait, before all others, to be read again.

        False where it has none, or has lost rows and grown longer than a slot, so that it cannot be read again.
        """
        if len(sequence.ids) > self._capacity_tokens or not self._slots.free(sequence):
            return False
        sequence.forget()
        self._waiting.appendleft(sequence)
        return True

    def remove(self, sequence: Sequence) -> bool:
        """Forget a sequence in any state and free its slot; False when it is not here any more."""
        if self._slots.free(sequence):
            return True
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            return True
        return False
