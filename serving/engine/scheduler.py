"""Which tokens run next: prompts in chunks, answers in one batch, in turns. No tensors, no threads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from runtime.cache_shape import CacheShape
from serving.engine.sequence import Sequence
from serving.engine.slots import SlotPool
from serving.protocol import FinishReason


@dataclass(frozen=True)
class Prefill:
    """Run prompt tokens `start ... end - 1` of one sequence."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        """True when the prompt ends with this chunk, so that a token can be sampled."""
        return self.end == self.sequence.num_prompt_tokens


@dataclass(frozen=True)
class DecodeRow:
    """One slot of a decode batch.

    Attributes:
        num_cached: Rows written before this step; the new token is written at this row.
        sequence: The owner that wants a token; None for a slot inside the range that is free or still in prefill. Such
            a row is computed for nothing, and what it writes is overwritten by the slot's next token.
    """

    num_cached: int
    sequence: Sequence | None


@dataclass(frozen=True)
class Decode:
    """Run one token of every row; row i is slot `start + i`."""

    start: int
    rows: tuple[DecodeRow, ...]

    @property
    def sequences(self) -> list[Sequence]:
        """The owners that want a token, by slot."""
        return [row.sequence for row in self.rows if row.sequence is not None]


Work = Prefill | Decode


class Scheduler:
    """Sequences by state: waiting for a slot, in prefill, or decoding. Used by one thread.

    A prompt chunk and a decode step take turns, so that a long prompt slows the running answers but never stops them.
    Prompts go first come, first served. A slot is as long as the context, so a running sequence is never preempted.
    """

    def __init__(self, shape: CacheShape, chunk_tokens: int) -> None:
        self._capacity_tokens = shape.capacity_tokens
        self._chunk_tokens = chunk_tokens
        self._pool = SlotPool(shape.num_slots)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        self._prefill_was_last = False

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    @property
    def num_cached_tokens(self) -> int:
        """Cache rows in use, over all slots."""
        return sum(sequence.num_cached for sequence in list(self._running.values()))

    @property
    def has_work(self) -> bool:
        """True while any sequence is unfinished."""
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its prompt and one more token fit a slot, which the caller has checked."""
        self._waiting.append(sequence)

    def schedule(self) -> Work | None:
        """Return what to run next; None when nothing is left."""
        self._admit()
        prefill = next((s for s in self._running.values() if not s.is_prefilled), None)
        can_decode = any(s.is_prefilled for s in self._running.values())
        if prefill is None and not can_decode:
            return None
        self._prefill_was_last = prefill is not None and not (can_decode and self._prefill_was_last)
        if prefill is not None and self._prefill_was_last:
            end = min(prefill.num_cached + self._chunk_tokens, prefill.num_prompt_tokens)
            return Prefill(prefill, prefill.num_cached, end)
        return self._decode()

    def _admit(self) -> None:
        while self._waiting and (slot := self._pool.try_take()) is not None:
            sequence = self._waiting.popleft()
            sequence.slot = slot
            self._running[slot] = sequence

    def _decode(self) -> Decode:
        slots = [slot for slot, sequence in self._running.items() if sequence.is_prefilled]
        start, end = min(slots), max(slots) + 1
        return Decode(start, tuple(self._row(slot) for slot in range(start, end)))

    def _row(self, slot: int) -> DecodeRow:
        sequence = self._running.get(slot)
        if sequence is None:
            return DecodeRow(0, None)
        return DecodeRow(sequence.num_cached, sequence if sequence.is_prefilled else None)

    def advance(self, prefill: Prefill) -> None:
        """Record that a prompt chunk is in the cache."""
        prefill.sequence.num_cached = prefill.end

    def append(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        """Record a sampled token; free the slot and return the reason when it was the last."""
        if sequence.output_ids:
            sequence.num_cached += 1
        sequence.output_ids.append(token_id)
        reason = self._finish_reason(sequence, token_id)
        if reason is not None:
            self.remove(sequence)
        return reason

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        if token_id in sequence.eos_token_ids:
            return "stop"
        limit = sequence.sampling.max_tokens
        is_full = sequence.num_cached >= self._capacity_tokens
        return "length" if is_full or len(sequence.output_ids) == limit else None

    def remove(self, sequence: Sequence) -> bool:
        """Forget a sequence in any state and free its slot; False when it is not here any more."""
        if sequence.slot is not None and self._running.get(sequence.slot) is sequence:
            del self._running[sequence.slot]
            self._pool.give_back(sequence.slot)
            sequence.slot = None
            return True
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            return True
        return False
