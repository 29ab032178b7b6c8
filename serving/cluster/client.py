"""An engine on the other side of Ray Serve's deployment handles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from bundle.errors import EngineDeadError, ModelNotFoundError
from serving.cluster.call import Outlook, WatchedCall
from serving.cluster.watch import ReplicaWatch, summed
from serving.engine_status import EngineStatus
from serving.protocol import (
    ClassifyRequest,
    ClassifyResult,
    DetokenizeRequest,
    EmbedRequest,
    EmbedResult,
    GenerateEvent,
    GenerateRequest,
    Health,
    ModelCard,
    TokenizeRequest,
    TokenizeResult,
)

_STATUS_S = 2.0
"""How long replicas may take to tell what they are doing."""
_TRIES = 2
"""Replicas that a request may be sent to, one after another, while nothing came of it. A request that brings its
replica down brings down no more than these."""


@dataclass(frozen=True)
class Replicas:
    """The replicas of one model, as a client reaches them.

    Attributes:
        handle: Ray's, of the model's deployment.
        stream: The same, for answers in pieces.
        watch: Over them, in this process.
    """

    handle: Any
    stream: Any
    watch: ReplicaWatch


class RayClient:
    """An `EngineClient` over deployment handles.

    A request whose replica dies or falls silent before its first event is sent to another; later, it fails.

    Args:
        cards: Of the served models, in order; a bundle does not change under a deployment.
        replicas: By the name of the served model.
        patience_s: How long a request waits while its model has no replica that can take it.
    """

    def __init__(self, cards: Sequence[ModelCard], replicas: Mapping[str, Replicas], patience_s: float) -> None:
        self._cards = list(cards)
        self._replicas = dict(replicas)
        self._patience_s = patience_s
        self._drain_reason = ""
        self._stop_reason = ""

    def drain(self, reason: str) -> None:
        """Take no more requests; those under way go on."""
        self._drain_reason = reason

    def stop(self, reason: str) -> None:
        """Take no more requests, and fail those under way."""
        self._drain_reason = self._stop_reason = reason

    async def models(self) -> list[ModelCard]:
        """Return the served models."""
        return self._cards

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Yield the answer's pieces, then exactly one FinishedEvent, or raise. Closing the iterator cancels."""
        stream = self._of(request.model).stream
        call, pieces = await self._first(request.model, lambda: stream.generate.remote(request), WatchedCall.next)
        is_over = False
        try:
            while pieces is not None:
                for event in pieces:
                    yield event
                pieces = await call.next()
            is_over = True
        finally:
            if not is_over:
                call.cancel()

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one embedding per input."""
        handle = self._of(request.model).handle
        _, result = await self._first(request.model, lambda: handle.embed.remote(request), WatchedCall.result)
        return result  # type: ignore[no-any-return]

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return every image's score for every label."""
        handle = self._of(request.model).handle
        _, result = await self._first(request.model, lambda: handle.classify.remote(request), WatchedCall.result)
        return result  # type: ignore[no-any-return]

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Return the tokens of a conversation or a text."""
        handle = self._of(request.model).handle
        _, result = await self._first(request.model, lambda: handle.tokenize.remote(request), WatchedCall.result)
        return result  # type: ignore[no-any-return]

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text of tokens, control tokens written out."""
        handle = self._of(request.model).handle
        _, result = await self._first(request.model, lambda: handle.detokenize.remote(request), WatchedCall.result)
        return result  # type: ignore[no-any-return]

    async def health(self) -> Health:
        """Return whether every model has a replica that answers, by what this process sees of them.

        Neither a replica nor Serve's controller is asked: a question to a replica would wait behind its requests, and
        requests are served while the controller is away.
        """
        faults = [f"{name}: {each.watch.reason}" for name, each in self._replicas.items() if not each.watch.has_fit]
        reason = "; ".join(filter(None, [self._drain_reason, *faults]))
        summed = {name: _gauges(each.watch) for name, each in self._replicas.items()}
        by_replica = {name: each.watch.gauges for name, each in self._replicas.items()}
        return Health(not reason, reason, summed, replica_gauges=by_replica)

    async def status(self) -> dict[str, dict[str, EngineStatus]]:
        """Return what the engine of every replica is doing; one that does not answer in time is left out."""
        names = list(self._replicas)
        answers = await asyncio.gather(*(_statuses(self._replicas[name].handle) for name in names))
        return {
            name: {replica: told[name] for replica, told in answer if name in told}
            for name, answer in zip(names, answers, strict=True)
        }

    async def _first(self, model: str, send: Callable[[], Any], what: Callable[[WatchedCall], Any]) -> Any:
        """Return a call and the first that came of it, from as many replicas as it takes.

        Raises:
            PocketVLMError: As a replica raised it, or what happened to the last one.
        """
        for tries_left in reversed(range(_TRIES)):
            if self._drain_reason:
                raise EngineDeadError(self._drain_reason)
            watch = self._replicas[model].watch
            call = WatchedCall(send, Outlook(watch, self._patience_s, lambda: self._stop_reason))
            try:
                return call, await what(call)
            except BaseException as error:
                call.cancel()
                if not (isinstance(error, EngineDeadError) and call.is_lost and tries_left):
                    raise
        raise RuntimeError(f"{_TRIES} tries are none")

    def _of(self, model: str) -> Replicas:
        if model not in self._replicas:
            raise ModelNotFoundError(f"no model {model!r} is served; there are {', '.join(self._replicas)}", "model")
        return self._replicas[model]


async def _statuses(handle: Any) -> list[tuple[str, dict[str, EngineStatus]]]:
    try:
        answering = handle.broadcast("status").results_async(timeout_s=_STATUS_S, return_exceptions=True)
        answers = await asyncio.wait_for(answering, _STATUS_S)
    except (RayError, RayServeException, TimeoutError, asyncio.TimeoutError):
        return []
    return [answer for answer in answers if not isinstance(answer, BaseException)]


def _gauges(watch: ReplicaWatch) -> dict[str, float]:
    return {**summed(list(watch.gauges.values())), "num_replicas": float(watch.num_running)}
