"""An engine on the other side of Ray Serve's deployment handles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from bundle.errors import EngineDeadError, ModelNotFoundError
from serving.cluster.call import Outlook, WatchedCall, first_of
from serving.cluster.canary import Split, VariantFigures, check_canaries
from serving.cluster.hold import Hold
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
    ScoreRequest,
    ScoreResult,
    TokenizeRequest,
    TokenizeResult,
    WaitingEvent,
    found_card,
    with_adapters,
)
from serving.ray_settings import Canary
from serving.tracing import carrying

Held = tuple[WatchedCall, Any]
WholeRequest = EmbedRequest | ScoreRequest | ClassifyRequest | TokenizeRequest | DetokenizeRequest

_TELL_S = 5.0
"""Between two words to a client that waits for a model to be loaded: proxies close what is silent for longer."""
_STATUS_S = 2.0
"""How long replicas may take to tell what they are doing."""


@dataclass(frozen=True)
class Replicas:
    """The replicas of one model, as a client reaches them.

    Attributes:
        handle: Ray's, of the model's deployment.
        stream: The same, for answers in pieces.
        watch: Over them, in this process.
        hold: Of a model that may have none: where requests wait then.
    """

    handle: Any
    stream: Any
    watch: ReplicaWatch
    hold: Hold | None = None

    @property
    def can_serve(self) -> bool:
        """Whether a request would be answered."""
        return self.watch.has_fit or self.held is not None

    @property
    def held(self) -> Hold | None:
        """Where a request that comes now waits; None where replicas run, or nothing waits for there to be any."""
        return None if self.watch.num_running else self.hold


class RayClient:
    """An `EngineClient` over deployment handles.

    A request whose replica dies or falls silent before its first event is sent to another; later, it fails.

    Args:
        cards: Of the served models, in order; a bundle does not change under a deployment.
        replicas: By the name of the served model.
        patience_s: How long a request waits while its model has no replica that can take it.
    """

    def __init__(self, cards: Sequence[ModelCard], replicas: Mapping[str, Replicas], patience_s: float) -> None:
        self._cards = {card.name: card for card in cards}
        self._replicas = dict(replicas)
        self._patience_s = patience_s
        self._splits: dict[str, Split] = {}
        self._drain_reason = ""
        self._stop_reason = ""

    def drain(self, reason: str) -> None:
        """Take no more requests; those under way go on."""
        self._drain_reason = reason

    def stop(self, reason: str) -> None:
        """Take no more requests, and fail those under way."""
        self._drain_reason = self._stop_reason = reason

    def split(self, canaries: Sequence[Canary]) -> None:
        """Serve names that stand for several models from now on; what was seen of those that stay is kept.

        Raises:
            SettingsError: One cannot be served; those of before stay.
        """
        check_canaries(canaries, list(self._cards.values()))
        figures = {name: split.figures for name, split in self._splits.items()}
        self._splits = {canary.name: Split(canary) for canary in canaries}
        for name, split in self._splits.items():
            split.figures = figures.get(name, {})

    @property
    def canaries(self) -> list[Canary]:
        """Names that stand for several models."""
        return [split.canary for split in self._splits.values()]

    def told(self) -> dict[str, dict[str, VariantFigures]]:
        """Return what this process saw of each canary's variants."""
        return {name: split.told() for name, split in self._splits.items()}

    async def models(self) -> list[ModelCard]:
        """Return the served models; a canary as the variant that gets the most requests, behind each its adapters."""
        return self._served()

    def _served(self) -> list[ModelCard]:
        canaries = (self._card_of(split.canary) for split in self._splits.values())
        return with_adapters([*self._cards.values(), *canaries])

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Yield the answer's pieces, then exactly one FinishedEvent, or raise. Closing the iterator cancels."""
        model, adapter = self._named(request.model)
        request = replace(carrying(request), model=model, adapter=adapter or request.adapter)
        split = self._splits.get(request.model)
        if split is None:
            events = self._generate(request)
        else:
            request = replace(request, model=split.variant_of(request))
            events = split.timed(request.model, self._generate(request))
        del request  # it holds the encoded images, which an answer is not to hold for its whole length
        async with aclosing(events):
            async for event in events:
                yield event

    async def _generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        replicas = self._of(request.model)
        start = partial(self._first, replicas, lambda: replicas.stream.generate.remote(request), WatchedCall.next)
        if replicas.held is None:
            call, pieces = await start()
        else:
            async with aclosing(_while_held(replicas.held, start)) as waiting:
                async for came in waiting:
                    if isinstance(came, str):
                        yield WaitingEvent(came)
                    else:
                        call, pieces = came
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
        return await self._whole(carrying(request), lambda handle: handle.embed)  # type: ignore[no-any-return]

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Return how well each pair fits."""
        return await self._whole(carrying(request), lambda handle: handle.score)  # type: ignore[no-any-return]

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return every image's score for every label."""
        return await self._whole(carrying(request), lambda handle: handle.classify)  # type: ignore[no-any-return]

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Return the tokens of a conversation or a text."""
        return await self._whole(request, lambda handle: handle.tokenize)  # type: ignore[no-any-return]

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text of tokens, control tokens written out."""
        return await self._whole(request, lambda handle: handle.detokenize)  # type: ignore[no-any-return]

    async def _whole(self, request: WholeRequest, method: Callable[[Any], Any]) -> Any:
        """Return the answer of a replica's method to a request."""
        name, _ = self._named(request.model)
        request, split = replace(request, model=name), self._splits.get(name)
        model = name if split is None else split.variant_of(request)
        replicas, own = self._of(model), replace(request, model=model)
        with ExitStack() as places:
            if replicas.held is not None:
                places.enter_context(replicas.held.place())
            first = self._first(replicas, lambda: method(replicas.handle).remote(own), WatchedCall.result)
            _, result = await (first if split is None else split.timed_whole(model, first))
        return result

    async def health(self) -> Health:
        """Return whether every model has a replica that answers, by what this process sees of them.

        Neither a replica nor Serve's controller is asked: a question to a replica would wait behind its requests, and
        requests are served while the controller is away. A model that may have none waits for its first request.
        """
        faults = [f"{name}: {each.watch.reason}" for name, each in self._replicas.items() if not each.can_serve]
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

    async def _first(
        self, replicas: Replicas, send: Callable[[], Any], what: Callable[[WatchedCall], Awaitable[Any]]
    ) -> tuple[WatchedCall, Any]:
        """Return a call and the first that came of it, from as many replicas as it takes.

        Raises:
            PocketVLMError: As a replica raised it, or what happened to the last one.
        """
        patience_s = self._patience_s if replicas.hold is None else max(self._patience_s, replicas.hold.timeout_s)

        def outlook() -> Outlook:
            if self._drain_reason:
                raise EngineDeadError(self._drain_reason)
            return Outlook(replicas.watch, patience_s, lambda: self._stop_reason)

        return await first_of(send, outlook, what)

    def _card_of(self, canary: Canary) -> ModelCard:
        most = max(canary.variants, key=lambda variant: variant.weight)
        held = [set(self._cards[variant.model].adapters) for variant in canary.variants]
        card = self._cards[most.model]
        common = tuple(adapter for adapter in card.adapters if all(adapter in each for each in held))
        return replace(card, name=canary.name, adapters=common)

    def _named(self, name: str) -> tuple[str, str]:
        """Return the model, or the canary, that a request means, and the adapter of it, or "".

        Raises:
            ModelNotFoundError: None has that name.
        """
        if name in self._replicas or name in self._splits:
            return name, ""
        cards = self._served()
        card = found_card(cards, name)
        if card is None:
            told = ", ".join(dict.fromkeys([*self._replicas, *(each.name for each in cards)]))
            raise ModelNotFoundError(f"no model {name!r} is served; there are {told}", "model")
        return card.engine_model, card.adapter

    def _of(self, model: str) -> Replicas:
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


async def _while_held(hold: Hold, start: Callable[[], Coroutine[Any, Any, Held]]) -> AsyncGenerator[Held | str, None]:
    """Yield what is waited for, now and every few seconds, and then what came.

    Raises:
        ModelStartingError: Enough wait already.
    """
    with hold.place():
        coming = asyncio.ensure_future(start())
        try:
            while not coming.done():
                yield hold.reason
                await asyncio.wait((coming,), timeout=_TELL_S)
            yield coming.result()
        finally:
            coming.cancel()
            await asyncio.wait((coming,))
