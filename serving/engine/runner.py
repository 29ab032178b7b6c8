"""A batch to logits: what the scheduler chose, handed to the decoder and its cache."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bundle import tensors
from bundle.states import layers_of
from quant.kv.compressing import Compressing, ReadPrompt, Stayed
from runtime.decoder import Decoder
from runtime.feeds import TokenBatch
from runtime.fused_prefix import StoredRows
from runtime.segments import run_segment
from runtime.step_logits import StepLogits
from serving.engine.changes import Change, Keep, Load, Move, Restore, Snapshot
from serving.engine.scheduler import Batch, Row
from serving.engine.sequence import Sequence, newest_tokens


class Runner:
    """The token graphs of one generative model. Used by one thread; holds no queue.

    Args:
        decoder: Bound to the cache.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._layers = layers_of(decoder.states.states)
        self._queries = tuple(f"{tensors.LAST_QUERIES}{layer}" for layer in range(len(self._layers)))

    @property
    def num_length_groups(self) -> int:
        """G: how many row counts a sequence has."""
        return self._decoder.graphs.num_length_groups

    def change(self, changes: Iterable[Change]) -> None:
        """Copy, drop and give back rows of the cache, in order."""
        states = self._decoder.states
        for change in changes:
            if isinstance(change, Move):
                states.copy(change.source, change.target, change.rows)
            elif isinstance(change, Keep):
                states.keep(change.slot, change.group, change.rows)
            elif isinstance(change, Load):
                states.put(change.slot, change.rows.of_state)
            elif isinstance(change, Snapshot):
                states.snapshot(change.slot, change.number)
            elif isinstance(change, Restore):
                states.restore(change.slot, change.number)
            else:
                states.give_back(change.slot, change.first_row, change.group)

    def run(self, batch: Batch) -> StepLogits:
        """Run a batch's tokens and return the logits [B, V] of each row's last, valid until the next run.

        Raises:
            ValueError: The rows are not in neighbouring slots.
        """
        slots = [row.sequence.slot for row in batch.rows]
        first = slots[0]
        if first is None or slots != list(range(first, first + len(slots))):
            raise ValueError(f"the rows of a batch are in the slots {slots}, which are not neighbours")
        row = batch.rows[0]
        if row.segment is not None:
            return self._run_segment(first, row)
        if row.start == 0:
            self._decoder.states.clear(first)
            self._decoder.states.fill(first, row.sequence.prompt.memory)
        if len(batch.rows) == 1 and (queries := row.sequence.try_observe(row.end)) is not None:
            run = row.sequence.run(row.start, row.end)
            logits, found = self._decoder.run_with(self._queries, batch.phase, first, [run])
            queries.add(found)
            return StepLogits.of(logits[:, 0])
        return self._decoder.step_batch(batch.phase, first, _tokens(batch))

    def _run_segment(self, slot: int, row: Row) -> StepLogits:
        """Run tokens of one prompt through a segment; the logits are of no use before the last one."""
        reading = row.sequence.reading
        if reading is None:
            raise ValueError(f"{row.sequence.request_id} has no prompt that runs in segments")
        logits = run_segment(self._decoder, slot, reading, row.start, row.end)
        return StepLogits.of(np.empty((1, 0), np.float32) if logits is None else logits[None])

    def hand_out(self, sequence: Sequence) -> None:
        """Give a sequence whose prompt was read the rows of it that its caller wants, once."""
        wanted = sequence.wanted_rows
        if wanted is None or sequence.slot is None or sequence.handed_out is not None:
            return
        sequence.handed_out = StoredRows(len(wanted), self._decoder.states.stored(sequence.slot, wanted))

    def compress(self, sequence: Sequence, until_s: float) -> Stayed | None:
        """Choose which of a sequence's rows stay, of some layers, and return what stayed once that is all of them.

        Args:
            sequence: Whose prompt was read.
            until_s: Monotonic time after which no further layer is begun.
        """
        if sequence.compressing is None:
            sequence.compressing = self._compressing(sequence)
        return sequence.compressing.advance(until_s)

    def _compressing(self, sequence: Sequence) -> Compressing:
        compression, slot = sequence.compression, sequence.slot
        if compression is None or slot is None:
            raise ValueError(f"{sequence.request_id} in slot {slot} keeps its rows")
        prompt = ReadPrompt(
            slot, sequence.num_prompt_tokens, sequence.last_queries, sequence.is_image, sequence.content_seed
        )
        return Compressing(compression, self._decoder.states, self._layers, prompt)


def _tokens(batch: Batch) -> TokenBatch:
    """Return what is run; most steps run the newest token of every row, for which nothing is made row by row."""
    if all(row.sequence.is_decoding for row in batch.rows):
        return newest_tokens(batch.sequences)
    return TokenBatch.of([row.sequence.run(row.start, row.end) for row in batch.rows])
