"""Which tokens run next: prompts in chunks, answers in one batch, in turns. No tensors, no threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.manifest import RunPhase
from quant.kv.compressing import Stayed
from runtime.cache_shape import NUM_SNAPSHOTS, CacheShape
from runtime.chunks import next_chunk, next_end
from serving.engine.changes import Change, Keep
from serving.engine.pace import Pace
from serving.engine.sequence import Sequence
from serving.engine.slots import Slots
from serving.engine.waiting import Waiting
from serving.engine_status import MOST_WAITING, SlotStatus, WaitingStatus
from serving.protocol import FinishReason

_HEADROOM_SHARE = 16
"""A sequence gets a slot where one in so many of a context's rows is free for it to grow, and for each that runs."""


@dataclass(frozen=True)
class Row:
    """One sequence's part of a batch: tokens `start ... end - 1` of its ids, or of the segment that they run through.

    Attributes:
        sequence: Whose tokens they are.
        start: The first one.
        end: Behind the last one.
        segment: Of the decoder; None: they run through all of it.
    """

    sequence: Sequence
    start: int
    end: int
    segment: int | None = None

    @property
    def is_last(self) -> bool:
        """True when nothing of the sequence is left to be read, once it was run, so that a token can be sampled."""
        return (self.end if self.segment is None else self.sequence.num_run) == len(self.sequence.ids)

    @property
    def share(self) -> float:
        """How much of the decoder the tokens run through."""
        segmented = self.sequence.segmented
        return 1.0 if self.segment is None or segmented is None else segmented.layers.share(self.segment)

    @property
    def num_rows(self) -> int:
        """Rows that the sequence will hold, of its longest length group."""
        held = self.sequence.num_rows
        return held + self.end - self.start if self.segment is None else max(held, self.end)


@dataclass
class Counts:
    """What a scheduler did since it was made.

    Attributes:
        prefix_queries: Tokens of the prompts that were begun, where prompts are kept.
        prefix_hits: Those of them whose rows were there.
        preemptions: How often a running sequence lost its slot.
        tokens_read: Of prompts, those that ran; one that ran through a part of the layers counts in part.
        tokens_sampled: Of answers.
    """

    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    tokens_read: float = 0.0
    tokens_sampled: int = 0


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

    Prompts and decode steps take turns, so that a long prompt slows the running answers but never stops them: a chunk
    of one, or as many short prompts as the gap between two tokens has room for. Who waits goes by
    arrival and priority. Rows that hold something are never more than the cache allows: first go those of sequences
    that have ended, then the running sequence whose turn came last gives way and waits again.

    Args:
        shape: Slots, their length, and how many rows may hold something.
        pace: How much of a prompt runs between two decode steps.
        keeps_prefixes: Whether rows of a prompt outlive its sequence, for those that begin alike. States of fixed size
            cannot be cut: where they are kept at some tokens, others begin there; else at their first token.

    Attributes:
        shape: As it was given.
        counts: What it did until now.
    """

    def __init__(self, shape: CacheShape, pace: Pace, *, keeps_prefixes: bool = True) -> None:
        self.shape = shape
        self._pace = pace
        self._keeps = keeps_prefixes and (shape.has_snapshots or not shape.bytes_per_slot)
        self._slots = Slots(shape.num_slots, shape.num_spare_slots, keeps=self._keeps, copies=shape.has_cheap_copies)
        self._waiting = Waiting()
        self._half_seated: Sequence | None = None
        self._prompt_was_last = False
        self.counts = Counts()

    @property
    def num_running(self) -> int:
        """Sequences with a slot."""
        return len(self._slots.running)

    @property
    def num_cached_rows(self) -> int:
        """Rows in use, over all slots: of each sequence, those of its longest length group."""
        return sum(sequence.num_rows for sequence in self._slots.running)

    @property
    def num_unread_tokens(self) -> int:
        """Tokens of prompts that were not read yet; asked from other threads as well."""
        waiting = (each for first in self._waiting.all for each in first.together)
        return sum(max(len(each.ids) - each.num_run, 0) for each in (*waiting, *self._slots.running))

    @property
    def num_kept_rows(self) -> int:
        """Rows of sequences that have ended, kept for those that begin alike."""
        return self._slots.num_kept_rows

    def slots(self, now_s: float) -> tuple[SlotStatus, ...]:
        """Return what every slot is doing, as far as another thread than the engine's can see."""
        return self._slots.statuses(now_s)

    def waiting(self, now_s: float) -> tuple[WaitingStatus, ...]:
        """Return the first that wait, likewise."""
        return tuple(
            WaitingStatus(each.request_id, each.num_prompt_tokens, now_s - each.submitted_s)
            for each in self._waiting.first_ones(MOST_WAITING)
        )

    @property
    def has_work(self) -> bool:
        """True while any sequence is unfinished."""
        return bool(self._waiting or self.num_running)

    @property
    def compressing(self) -> Sequence | None:
        """The sequence whose prompt was read and of whose rows some are to be dropped before it goes on."""
        filling = self._slots.filling
        return filling if filling is not None and filling.is_to_be_compressed else None

    @property
    def spare_s(self) -> float:
        """How long rows may be chosen before those that decode go on."""
        return self._pace.spare_s

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its prompt and one more token fit a slot, which the caller has checked.

        Those of its shadow fit another, and both together the rows that may hold something.
        """
        for each in sequence.together if self.shape.has_snapshots and self._keeps else ():
            each.snapshots = [0] * NUM_SNAPSHOTS
        self._waiting.add(sequence)

    def late(self, now_s: float) -> list[Sequence]:
        """Return the sequences whose deadline has passed while they wait; the caller removes them."""
        return self._waiting.late(now_s)

    def schedule(self) -> Batch | None:
        """Return what to run next, once the changes that are due are made; None when nothing is left."""
        self._seat_next()
        batch = self._next_batch()
        while batch is not None and not self._try_make_room(batch) and self._try_preempt_last():
            batch = self._next_batch()
        self._prompt_was_last = batch is not None and self._is_filling(batch)
        return batch

    def take_changes(self) -> tuple[Change, ...]:
        """Return what is due to be done to rows, in order; whoever runs batches does it first.

        It is no part of a batch: one that fails must not take with it what other sequences' rows depend on.
        """
        return self._slots.take_changes()

    def _seat_next(self) -> None:
        """Let the next prompt begin, where there is room: of a pair the shadow's, which leaves room for the other's."""
        if self._half_seated is not None:
            if self._slots.has_room:
                sequence, self._half_seated = self._half_seated, None
                self._seat(sequence)
        elif self._waiting and self._has_room_for_pair(self._waiting.first):
            sequence = self._waiting.take()
            self._seat(sequence.shadow or sequence)
            self._half_seated = sequence if sequence.shadow else None

    def _has_room_for_pair(self, sequence: Sequence) -> bool:
        """Return whether a sequence that waits finds seats and rows, for its shadow as well."""
        return self._slots.has_room_for(len(sequence.together)) and self._has_rows_for(sequence)

    def _seat(self, sequence: Sequence) -> None:
        is_new = sequence.cached_tokens is None
        self._slots.seat(sequence)
        if sequence.is_decoding:
            self._slots.settle()
        if is_new and self._keeps:
            self.counts.prefix_queries += sequence.num_prompt_tokens
            self.counts.prefix_hits += sequence.num_run

    def _has_rows_for(self, sequence: Sequence) -> bool:
        """Return whether a sequence that waits could run beside the others for a while."""
        num_running = self.num_running
        if self.shape.budget_rows is None:
            return True
        headroom = self.shape.capacity_tokens // _HEADROOM_SHARE * (num_running + 1)
        num_rows = sum(each.num_rows_again for each in sequence.together)
        return not num_running or self.num_cached_rows + num_rows + headroom <= self.shape.most_rows

    def _next_batch(self) -> Batch | None:
        filling, decoding = self._slots.filling, self._slots.stepping
        if self.compressing is not None:
            filling = None  # its rows are chosen between steps
        if filling is not None and not (decoding and self._prompt_was_last and not self._has_room_for(filling)):
            return self._next_chunk(filling)
        rows = tuple(Row(sequence, sequence.num_run, sequence.num_run + 1) for sequence in decoding)
        return Batch("step", rows) if rows else None

    def _has_room_for(self, filling: Sequence) -> bool:
        """Return whether all that is left to be read, of prompt and answer, can run before the others go on."""
        return self._pace.has_room_for(filling.num_left_tokens)

    def _is_filling(self, batch: Batch) -> bool:
        return batch.rows[0].sequence is self._slots.filling

    def _try_make_room(self, batch: Batch) -> bool:
        """Free rows of sequences that have ended until those of a batch can become resident."""
        if self.shape.budget_rows is None:
            return True
        ends = {row.sequence: row.num_rows for row in batch.rows}
        return self._slots.try_fit(ends, self.shape.budget_rows)

    def _try_preempt_last(self) -> bool:
        """Preempt the running sequence that would have been the last to get a slot; False where one alone is left."""
        _, *others = sorted({each.owner for each in self._slots.running}, key=self._waiting.place)
        return any(self.preempt(sequence) for sequence in reversed(others))

    def _next_chunk(self, sequence: Sequence) -> Batch:
        """Return the next tokens of a sequence that has more than one to be read.

        A sequence that was preempted has sampled tokens among them: those are read by the graph that read them first.
        """
        most = self._pace.chunk_tokens(beside_answers=bool(self._slots.stepping))
        if (reading := sequence.reading) is not None:
            return Batch("prompt", (Row(sequence, *reading.next_chunk(most), reading.segment),))
        start, num_prompt = sequence.num_run, sequence.num_prompt_tokens
        is_prompt = start < num_prompt
        if is_prompt:
            end = next_end(start, num_prompt, most, sequence.prompt.prompt.seen)
        else:
            end = start + next_chunk(len(sequence.ids) - 1 - start, most)
        if sequence.snapshots is not None and is_prompt:
            end = min([end, *(place for place in sequence.snapshot_places if place > start)])
        row = Row(sequence, start, end)
        return Batch("prompt" if is_prompt else "step", (row,))

    def advance(self, batch: Batch, took_s: float = 0.0) -> None:
        """Record that a batch was run, and how long that took; 0 where nobody measured."""
        if took_s:
            self._note_pace(batch, took_s)
        if batch.phase == "prompt":
            self.counts.tokens_read += sum((row.end - row.start) * row.share for row in batch.rows)
        for row in batch.rows:
            row.sequence.advance(row.end - row.start)
            if batch.phase == "prompt":
                self._slots.keep_states(row.sequence)
            if row.sequence is self._slots.filling and row.sequence.is_read:
                self._slots.settle()

    def _note_pace(self, batch: Batch, took_s: float) -> None:
        if self._is_filling(batch):
            row = batch.rows[0]
            self._pace.note_chunk((row.end - row.start) * row.share, took_s)
        else:
            self._pace.note_step(took_s)

    def append(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        """Record a sampled token; free the slot and return the reason when it was the last."""
        sequence.append(token_id)
        self.counts.tokens_sampled += 1
        reason = self._finish_reason(sequence, token_id)
        if reason is not None:
            self.remove(sequence)
        elif sequence is self._slots.filling and sequence.is_decoding:
            self._slots.settle()
        return reason

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        if token_id in sequence.eos_token_ids:
            return "stop"
        held = [each.num_rows for each in sequence.together]
        is_full = max(held) >= self.shape.capacity_tokens
        if sequence.shadow is not None:  # each row of either is one less for the other
            is_full = is_full or sum(held) + len(held) > self.shape.most_rows
        return "length" if is_full or sequence.num_output_tokens == sequence.sampling.max_tokens else None

    def keep(self, sequence: Sequence, group: int, rows: npt.NDArray[np.int64]) -> None:
        """Drop all rows of a running sequence's length group but some; its positions stay as they are.

        Raises:
            ValueError: The sequence has no slot, or a row is none of its own.
        """
        if sequence.slot is None or not all(0 <= row < sequence.rows[group] for row in rows.tolist()):
            raise ValueError(f"{sequence.request_id} in slot {sequence.slot} does not hold all of the rows {rows}")
        self._slots.add_change(Keep(sequence.slot, group, rows))
        sequence.cut(group, len(rows))

    def begin_compressing(self, sequence: Sequence) -> None:
        """Let others find a prompt whose rows are about to be chosen from, where there is room for a copy of them."""
        if self._keeps:
            self._slots.try_set_prompt_aside(sequence, self.shape.most_rows)

    def compressed(self, sequence: Sequence, stayed: Stayed) -> None:
        """Record which rows of the sequence stayed that was being compressed; the memory of the others is free."""
        sequence.compress(stayed)
        self._slots.shrink(sequence)
        if sequence.is_decoding:
            self._slots.settle()

    def preempt(self, sequence: Sequence) -> bool:
        """Take a sequence's slot and let it wait, where it stood before, to be read again.

        False where it has none, or has lost rows and grown longer than a slot, so that it cannot be read again. Its
        shadow goes with it.
        """
        if max(each.num_rows_again for each in sequence.together) > self.shape.capacity_tokens:
            return False
        if not self._free(sequence):
            return False
        for each in sequence.together:
            each.forget()
        self._waiting.add(sequence)
        self.counts.preemptions += 1
        return True

    def remove(self, sequence: Sequence, *, keeps: bool = True) -> bool:
        """Forget a sequence in any state and free its slot; False when it is not here any more.

        Args:
            sequence: Running or waiting.
            keeps: Whether the rows of its prompt may be of use to others.
        """
        waited = self._waiting.forget(sequence)
        is_here = self._free(sequence, keeps=keeps) or waited
        sequence.shadow = None  # which knows its owner: a circle would keep both, and their images, for a while
        return is_here

    def _free(self, sequence: Sequence, *, keeps: bool = True) -> bool:
        """Take the slots of a sequence and its shadow away; False where neither has one."""
        if self._half_seated is sequence:
            self._half_seated = None
        freed = [self._slots.free(each, keeps=keeps) for each in reversed(sequence.together)]
        return any(freed)

    def clear(self) -> None:
        """Forget all rows of sequences that have ended."""
        self._slots.clear()
