"""The engine thread of one generative model: schedule, run, sample, emit.

Sequences cross to the thread once, through its inbox; tokens come back on the sequence's own stream. Whatever happens,
a stream gets exactly one terminal event: `Ended` or `Failed`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal

from bundle.errors import EngineDeadError, MachineError, PocketVLMError
from serving.engine.cache import CacheShape
from serving.engine.protocol import FinishReason
from serving.engine.runner import Logits, Runner
from serving.engine.scheduler import Prefill, Scheduler, Work
from serving.engine.sequence import Sequence

logger = logging.getLogger(__name__)

_JOIN_TIMEOUT_S = 30.0  # longer than any one step on the boards we serve on


@dataclass(frozen=True)
class Sampled:
    """One token of an answer."""

    token_id: int


@dataclass(frozen=True)
class Ended:
    """The terminal event of a sequence that ran to its end, or was cancelled."""

    reason: FinishReason | Literal["cancelled"]


@dataclass(frozen=True)
class Failed:
    """The terminal event of a sequence that could not go on."""

    error: PocketVLMError


StreamEvent = Sampled | Ended | Failed


class TokenStream:
    """One sequence's events: written by the engine thread, read by one task of an event loop."""

    def __init__(self, sequence: Sequence, loop: asyncio.AbstractEventLoop) -> None:
        self.sequence = sequence
        self._loop = loop
        self._events: asyncio.Queue[StreamEvent] = asyncio.Queue()

    def try_put(self, event: StreamEvent) -> bool:
        """Hand an event to the reader's loop; False when that loop is gone."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop was closed: nobody reads any more
            return False
        return True

    async def events(self) -> AsyncIterator[StreamEvent]:
        """Yield every event up to and including the terminal one."""
        while True:
            event = await self._events.get()
            yield event
            if not isinstance(event, Sampled):
                return


@dataclass(frozen=True)
class _Submit:
    stream: TokenStream


@dataclass(frozen=True)
class _Cancel:
    stream: TokenStream


@dataclass(frozen=True)
class _Stop:
    pass


_Message = _Submit | _Cancel | _Stop


class Engine:
    """Runs sequences on a thread of its own.

    Args:
        runner: The model; only the engine thread calls it once `start` was called.
        shape: Slots and their length.
        chunk_tokens: Prompt tokens between two decode steps.
        stall_timeout_s: With work at hand, no step for so long is reported as a fault.
    """

    def __init__(self, name: str, runner: Runner, shape: CacheShape, chunk_tokens: int, stall_timeout_s: float) -> None:
        self._name = name
        self._runner = runner
        self._shape = shape
        self._scheduler = Scheduler(shape, chunk_tokens)
        self._stall_timeout_s = stall_timeout_s
        self._streams: dict[Sequence, TokenStream] = {}
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._gate = threading.Lock()  # orders a submission before or after death, never across it
        self._death: str | None = None
        self._beat_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the current step; sequences still here fail."""
        if self._thread.is_alive():
            self._inbox.put(_Stop())
            self._thread.join(_JOIN_TIMEOUT_S)

    def submit(self, sequence: Sequence) -> TokenStream:
        """Hand a sequence to the thread and return its stream; called on the event loop that will read it.

        Raises:
            EngineDeadError: The thread died or was stopped.
        """
        sequence.submitted_s = time.monotonic()
        stream = TokenStream(sequence, asyncio.get_running_loop())
        with self._gate:
            if self._death is not None:
                raise EngineDeadError(self._death)
            self._inbox.put(_Submit(stream))
        return stream

    def cancel(self, stream: TokenStream) -> None:
        """Ask that a sequence stops and its slot is freed; harmless when it has ended."""
        self._inbox.put(_Cancel(stream))

    @property
    def fault(self) -> str:
        """Return why sequences cannot be served now; empty when they can."""
        if self._death is not None:
            return self._death
        silent_s = time.monotonic() - self._beat_s
        if self._streams and silent_s > self._stall_timeout_s:
            return f"engine {self._name} has work but finished no step for {silent_s:.0f} s"
        return ""

    @property
    def gauges(self) -> dict[str, float]:
        """Return what `/metrics` shows of this engine."""
        rows = self._shape.num_slots * self._shape.capacity_tokens
        return {
            "num_requests_running": float(self._scheduler.num_running),
            "kv_cache_usage_perc": self._scheduler.num_cached_tokens / rows,
            "kv_cache_bytes": float(self._shape.total_bytes),
        }

    def _run(self) -> None:
        death = f"engine {self._name} was stopped"
        try:
            while self._receive():
                self._step()
        except BaseException as error:
            death = f"engine {self._name} died: {type(error).__name__}: {error}. Restart the process."
            logger.exception("engine %s died", self._name)
        finally:
            self._die(death)

    def _receive(self) -> bool:
        """Take in what arrived, waiting for something to do; False when it is time to stop."""
        while True:
            try:
                message = self._inbox.get(block=not self._scheduler.has_work)
            except Empty:
                return True
            self._beat_s = time.monotonic()
            if isinstance(message, _Stop):
                return False
            if isinstance(message, _Submit):
                self._streams[message.stream.sequence] = message.stream
                self._scheduler.add(message.stream.sequence)
            elif self._scheduler.remove(message.stream.sequence):
                self._emit(message.stream.sequence, Ended("cancelled"))

    def _step(self) -> None:
        self._beat_s = time.monotonic()
        work = self._scheduler.schedule()
        if work is None:
            return
        sequences = [work.sequence] if isinstance(work, Prefill) else work.sequences
        try:
            logits = self._logits(work)
        except Exception as error:
            logger.exception("engine %s: a step of %d sequences failed", self._name, len(sequences))
            for sequence in sequences:
                self._fail(sequence, _explained(error))
            return
        if isinstance(work, Prefill) and not work.is_last:
            return
        for sequence, row in zip(sequences, logits, strict=True):
            self._sample(sequence, row)

    def _logits(self, work: Work) -> Logits:
        if not isinstance(work, Prefill):
            return self._runner.decode(work)
        if work.start == 0:
            work.sequence.started_s = time.monotonic()
        logits = self._runner.prefill(work)
        self._scheduler.advance(work)
        return logits

    def _sample(self, sequence: Sequence, row: Logits) -> None:
        try:
            token_id = sequence.sampler(row)
        except MachineError as error:
            self._fail(sequence, error)
            return
        reason = self._scheduler.append(sequence, token_id)
        self._emit(sequence, Sampled(token_id))
        if reason is not None:
            self._emit(sequence, Ended(reason))

    def _fail(self, sequence: Sequence, error: PocketVLMError) -> None:
        self._scheduler.remove(sequence)
        self._emit(sequence, Failed(error))

    def _emit(self, sequence: Sequence, event: StreamEvent) -> None:
        stream = self._streams[sequence]
        is_read = stream.try_put(event)
        if not isinstance(event, Sampled):
            del self._streams[sequence]
        elif not is_read:
            self._inbox.put(_Cancel(stream))

    def _die(self, reason: str) -> None:
        """Refuse what comes, and fail what is here or on its way."""
        with self._gate:
            self._death = reason
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, _Submit):
                self._streams[message.stream.sequence] = message.stream
        for sequence in list(self._streams):
            self._emit(sequence, Failed(EngineDeadError(reason)))


def _explained(error: Exception) -> PocketVLMError:
    """Return the error itself when it was raised on purpose, else one that says that a step failed."""
    if isinstance(error, PocketVLMError):
        return error
    return MachineError(f"the step that this request was part of failed: {error}. Others go on; send it again.")
