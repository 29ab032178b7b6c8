"""Engines in processes of Ray's: what a deployment runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from ray import serve

from bundle.errors import EngineDeadError
from serving.cluster.demand import FirstTokens, load_of
from serving.cluster.remote_encoder import RemoteEncoder
from serving.cluster.watch import Report, summed
from serving.engine_status import EngineStatus
from serving.models.elsewhere import Features, SentImage
from serving.protocol import (
    ClassifyRequest,
    ClassifyResult,
    DetokenizeRequest,
    EmbedRequest,
    EmbedResult,
    GenerateEvent,
    GenerateRequest,
    Health,
    ManagedClient,
    ScoreRequest,
    ScoreResult,
    TokenizeRequest,
    TokenizeResult,
)


class Managed(Protocol):
    """What a process of Ray's runs."""

    async def start(self) -> None:
        """Load and warm up."""
        ...

    async def health(self) -> Health:
        """Return whether it serves, and its numbers."""
        ...

    async def close(self) -> None:
        """Stop; what is unfinished fails."""
        ...


Client = TypeVar("Client", bound=Managed)


class Process(Generic[Client]):
    """Something that serves in a process of Ray's. Ray restarts it when `check_health` raises.

    Args:
        make_client: Makes it; started here, closed when Ray takes the replica away.
    """

    async def __init__(self, make_client: Callable[[], Client]) -> None:  # type: ignore[misc]  # Ray awaits it
        self._first_tokens = FirstTokens(time.monotonic)
        self._client = make_client()
        await self._client.start()

    async def check_health(self) -> None:
        """Raise when the engine died or hangs.

        Raises:
            EngineDeadError: Requests cannot be served by this process any more.
        """
        health = await self._client.health()
        if not health.is_ready:
            raise EngineDeadError(health.reason)

    async def record_routing_stats(self) -> dict[str, Any]:
        """Return what the routers are to know, as the fields of a `Report`. Ray asks for it beside the requests."""
        health = await self._client.health()
        return asdict(Report(health.is_ready, health.reason, summed(list(health.model_gauges.values()))))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what this replica carries, as the fields of a `ReplicaLoad`, for Ray's autoscaler."""
        gauges = summed(list((await self._client.health()).model_gauges.values()))
        return asdict(load_of(gauges, self._first_tokens.p95_s))

    async def __del__(self) -> None:
        if hasattr(self, "_client"):
            await self._client.close()


class Replica(Process[ManagedClient]):
    """An engine in a process of Ray's."""

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Return the tokens of a conversation or a text."""
        return await self._client.tokenize(request)

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text of tokens, control tokens written out."""
        return await self._client.detokenize(request)

    async def status(self) -> tuple[str, dict[str, EngineStatus]]:
        """Return this replica's id, and what the engine of each of its models is doing."""
        told = await self._client.status()
        name = serve.get_replica_context().replica_id.unique_id
        return name, {model: next(iter(engines.values())) for model, engines in told.items()}


class Generator(Replica):
    """A replica of a vision-language model.

    Args:
        make_client: Makes its engine; told of the encoder where that is elsewhere.
        encoder: The handle of the encoder's deployment; None: the engine has its own.
        encoder_name: The name of that deployment.
        patience_s: How long an image waits while no replica of the encoder can take it.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self,
        make_client: Callable[..., ManagedClient],
        encoder: Any = None,
        encoder_name: str = "",
        patience_s: float = 0.0,
    ) -> None:
        if encoder is not None:
            make_client = partial(make_client, elsewhere=RemoteEncoder(encoder, encoder_name, patience_s))
        await super().__init__(make_client)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[list[GenerateEvent], None]:
        """Yield the answer's pieces as `gathered`; cancelled when the ingress cancels."""
        arrived_s, is_first = time.monotonic(), True
        async with (
            aclosing(self._client.generate(request)) as events,  # type: ignore[type-var]
            aclosing(gathered(events)) as pieces,
        ):
            async for each in pieces:
                if is_first:
                    self._first_tokens.add(time.monotonic() - arrived_s)
                    is_first = False
                yield each


class Embedder(Replica):
    """A replica of a model that embeds, or scores pairs."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one embedding per input."""
        return await self._client.embed(request)

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Return how well each pair fits."""
        return await self._client.score(request)

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return every image's score for every label."""
        return await self._client.classify(request)


class SeeingHost(Managed, Protocol):
    """What a replica of an encoder runs."""

    async def see(self, image: SentImage) -> Features:
        """Return what the encoder makes of an image."""
        ...


class VisionEncoder(Process[SeeingHost]):
    """A replica of one bundle's vision encoder."""

    async def see(self, image: SentImage) -> Features:
        """Return what the encoder makes of an image."""
        return await self._client.see(image)


async def gathered(events: AsyncIterator[GenerateEvent]) -> AsyncGenerator[list[GenerateEvent], None]:
    """Yield events, those together that came while the last ones were taken: each message costs Ray milliseconds."""
    waiting: asyncio.Queue[GenerateEvent | None] = asyncio.Queue()

    async def take() -> None:
        try:
            async for event in events:
                waiting.put_nowait(event)
        finally:
            waiting.put_nowait(None)

    taking = asyncio.ensure_future(take())
    try:
        while (event := await waiting.get()) is not None:
            pieces = [event]
            while not waiting.empty() and (event := waiting.get_nowait()) is not None:
                pieces.append(event)
            yield pieces
            if event is None:
                break
        await taking
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
