"""The engine thread of one generative model: schedule, run, sample, emit.

Sequences cross to the thread once, through its inbox; tokens come back on the sequence's own stream. Whatever happens,
a stream gets exactly one terminal event: `Ended` or `Failed`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from queue import Empty

from bundle.errors import DeadlineError, EngineDeadError, PocketVLMError
from runtime.step_logits import StepLogits
from serving.engine.faults import explained
from serving.engine.runner import Runner
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.likeliest import choices
from serving.engine.sampling.sampler import Sampler
from serving.engine.scheduler import Batch, Scheduler
from serving.engine.sequence import Sequence
from serving.engine.streams import Ended, Failed, Sampled, TokenStream, wake
from serving.engine.worker import Worker
from serving.engine_status import EngineStatus
from serving.watch import Patience

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Submit:
    stream: TokenStream


@dataclass(frozen=True)
class _Cancel:
    stream: TokenStream


@dataclass(frozen=True)
class _Clear:
    """Forget the rows of prompts whose sequences have ended."""


_Message = _Submit | _Cancel | _Clear


class Engine(Worker[_Message]):
    """Runs sequences on a thread of its own.

    Args:
        name: Of the thread.
        runner: The model; only the engine thread calls it once `start` was called.
        scheduler: Its sequences; only the engine thread calls it once `start` was called.
        patience: See `Worker`.
    """

    def __init__(self, name: str, runner: Runner, scheduler: Scheduler, patience: Patience) -> None:
        super().__init__(name, patience)
        self._runner = runner
        self._scheduler = scheduler
        self._sampler = Sampler()
        self._streams: dict[Sequence, TokenStream] = {}

    @property
    def has_work(self) -> bool:
        """True while any sequence is unfinished."""
        return bool(self._streams)

    def submit(self, sequence: Sequence) -> TokenStream:
        """Hand a sequence to the thread and return its stream; called on the event loop that will read it.

        Raises:
            EngineDeadError: The thread died or was stopped.
        """
        for each in sequence.together:
            each.submitted_s = time.monotonic()
        stream = TokenStream(sequence, asyncio.get_running_loop())
        self._send(_Submit(stream))
        return stream

    def cancel(self, stream: TokenStream) -> None:
        """Ask that a sequence stops and its slot is freed; harmless when it has ended."""
        self._inbox.put(_Cancel(stream))

    def clear_prefixes(self) -> None:
        """Ask that no request finds anything of those that have ended."""
        self._inbox.put(_Clear())

    @property
    def gauges(self) -> dict[str, float]:
        """Return what `/metrics` shows of this engine."""
        scheduler, counts = self._scheduler, self._scheduler.counts
        return {
            "num_requests_running": float(scheduler.num_running),
            "num_tokens_running": float(scheduler.num_cached_rows),
            "num_tokens_waiting": float(scheduler.num_unread_tokens),
            "kv_cache_rows": float(scheduler.shape.most_rows),
            "kv_cache_usage_perc": scheduler.num_cached_rows / scheduler.shape.most_rows,
            "kv_cache_bytes": float(scheduler.shape.total_bytes),
            "prefix_cache_bytes": float(scheduler.num_kept_rows * scheduler.shape.bytes_per_token),
            "prefix_cache_queries": float(counts.prefix_queries),
            "prefix_cache_hits": float(counts.prefix_hits),
            "num_preemptions": float(counts.preemptions),
            "tokens_read": float(counts.tokens_read),
            "tokens_sampled": float(counts.tokens_sampled),
        }

    @property
    def status(self) -> EngineStatus:
        """Return what its slots are doing; callable from any thread."""
        now_s, scheduler, shape = time.monotonic(), self._scheduler, self._scheduler.shape
        return EngineStatus(
            now_s,
            slots=scheduler.slots(now_s),
            waiting=scheduler.waiting(now_s),
            slot_rows=shape.capacity_tokens,
            num_seats=shape.num_slots,
        )

    def _step(self) -> bool:
        if not self._receive():
            return False
        self._beat()
        self._fail_late()
        self._compress()
        batch = self._scheduler.schedule()
        if batch is not None:
            # Outside of what a failing step may lose; where this fails, rows are gone and the worker ends.
            self._runner.change(self._scheduler.take_changes())
            self._do(batch)
        return True

    def _receive(self) -> bool:
        """Take in what arrived, waiting for something to do; False when it is time to stop."""
        while True:
            try:
                message = self._inbox.get(block=not self._scheduler.has_work)
            except Empty:
                return True
            self._beat()
            if message is None:
                return False
            if isinstance(message, _Submit):
                self._streams[message.stream.sequence] = message.stream
                self._scheduler.add(message.stream.sequence)
            elif isinstance(message, _Clear):
                self._scheduler.clear()
                self._runner.change(self._scheduler.take_changes())  # now, for nothing may run for long
            elif self._scheduler.remove(message.stream.sequence):
                self._end(message.stream.sequence, Ended(None))

    def _fail_late(self) -> None:
        """End what waits and whose deadline has passed: nobody waits for its answer."""
        for sequence in self._scheduler.late(time.monotonic()):
            waited_s = time.monotonic() - sequence.submitted_s
            self._fail(sequence, DeadlineError(f"the request waited {waited_s:.1f} s for a slot, its time limit"))

    def _compress(self) -> None:
        """Choose which rows of a prompt stay, of as many layers as the others' next tokens leave time for."""
        sequence = self._scheduler.compressing
        if sequence is None:
            return
        if sequence.compressing is None:
            self._scheduler.begin_compressing(sequence)
        self._runner.change(self._scheduler.take_changes())
        try:
            stayed = self._runner.compress(sequence, time.monotonic() + self._scheduler.spare_s)
        except Exception as error:
            logger.exception("%s: the choice of rows of %s failed", self.name, sequence.request_id)
            self._fail(sequence, explained(error))
            return
        if stayed is not None:
            self._scheduler.compressed(sequence, stayed)

    def _do(self, batch: Batch) -> None:
        try:
            logits = self._logits(batch)
        except Exception as error:
            logger.exception("%s: a step of %d sequences failed", self.name, len(batch.rows))
            for sequence in dict.fromkeys(each.owner for each in batch.sequences):
                self._fail(sequence, explained(error))
            return
        self._tell_of_shadows(batch, logits)
        speaks = [row.is_last and row.sequence.casts is None for row in batch.rows]
        if any(speaks):
            speaking = [row.sequence for row, does in zip(batch.rows, speaks, strict=True) if does]
            self._sample(speaking, logits.picked(speaks))

    def _tell_of_shadows(self, batch: Batch, logits: StepLogits) -> None:
        """Let sequences know the logits [V] of their shadows, which say nothing of their own."""
        for place, row in enumerate(batch.rows):
            if row.is_last and row.sequence.casts is not None:
                row.sequence.casts.sampling_state.hear(logits.rows()[place])

    def _logits(self, batch: Batch) -> StepLogits:
        began_s = time.monotonic()
        for row in batch.rows:
            for sequence in (row.sequence, row.sequence.owner):
                sequence.started_s = sequence.started_s or began_s
        logits = self._runner.run(batch)
        self._scheduler.advance(batch, time.monotonic() - began_s)
        if batch.phase == "prompt" and batch.rows[0].is_last:
            self._runner.hand_out(batch.rows[0].sequence)
        return logits

    def _sample(self, sequences: SequenceOf[Sequence], logits: StepLogits) -> None:
        """Let each sequence go on with a token chosen from its row of [B, V], or fail it alone."""
        try:
            chosen = choices(self._sampler, logits, [sequence.sampling_state for sequence in sequences])
        except Exception as error:  # of all rows at once, or of bringing the logits here
            logger.exception("%s: the choice of tokens for %d sequences failed", self.name, len(sequences))
            chosen = [explained(error)] * len(sequences)
        sampled_s = time.monotonic()
        streams = [self._streams[sequence] for sequence in sequences]
        try:
            # The last seat first: who ends there leaves no hole that another one's rows would be copied into.
            for stream, choice in reversed([*zip(streams, chosen, strict=True)]):
                if isinstance(choice, Choice):
                    self._append(stream, Sampled(choice, sampled_s))
                else:
                    self._fail(stream.sequence, choice)
        finally:  # whatever went wrong: a sequence that has ended is not here any more to be failed
            self._wake(streams)

    def _append(self, stream: TokenStream, sampled: Sampled) -> None:
        """Let a sequence go on with a token; whoever calls wakes its reader."""
        if not stream.try_put(sampled):
            self._inbox.put(_Cancel(stream))
        sequence = stream.sequence
        sequence.first_token_s = sequence.first_token_s or sampled.sampled_s
        sequence.last_token_s = sampled.sampled_s
        reason = self._scheduler.append(sequence, sampled.choice.token_id)
        if reason is not None:
            self._streams.pop(sequence).try_put(Ended(reason))

    def _fail(self, sequence: Sequence, error: PocketVLMError) -> None:
        self._scheduler.remove(sequence, keeps=False)
        self._end(sequence, Failed(error))

    def _end(self, sequence: Sequence, event: Ended | Failed) -> None:
        stream = self._streams.pop(sequence)
        stream.try_put(event)
        wake([stream])

    def _wake(self, streams: SequenceOf[TokenStream]) -> None:
        for stream in wake(streams):
            self._inbox.put(_Cancel(stream))

    def _abandon(self, error: EngineDeadError, messages: SequenceOf[_Message]) -> None:
        for message in messages:
            if isinstance(message, _Submit):
                _fail_now(message.stream, error)
            elif isinstance(message, _Clear):
                self._inbox.put(message)  # it was promised
        for stream in list(self._streams.values()):
            _fail_now(stream, error)
            self._inbox.put(_Cancel(stream))  # for a thread that goes on: it alone touches the scheduler


def _fail_now(stream: TokenStream, error: PocketVLMError) -> None:
    if stream.try_put(Failed(error)):
        wake([stream])
