"""What a caller of the engine waits for: first tokens, whole answers, embeddings; everything but HTTP is in it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator

from devices.energy.account import EnergyAccount, FoundMeters, spent_joules
from loadtests.images import draw_image
from loadtests.stopwatch import Measurement, RequestEnergy, Stopwatch
from loadtests.wording import counted
from serving.models.client import LocalClient
from serving.protocol import (
    EmbedRequest,
    FinishedEvent,
    GenerateRequest,
    ImagePart,
    Message,
    SamplingParams,
    TextPart,
    Usage,
)

_QUESTION = "What is in the picture?"
_CAPTION = "a photo of a red circle"


class Conversation:
    """One model of a client, asked again and again with seeded images.

    Args:
        client: Started.
        model: The served name.
        image_px: Width and height of the images.
        seed: First of the images' seeds.
        account: Tells what requests take; None: that is not asked.
    """

    def __init__(
        self, client: LocalClient, model: str, image_px: int, seed: int, account: EnergyAccount | None = None
    ) -> None:
        self._client = client
        self._account = account or EnergyAccount(FoundMeters((), ()))
        self._model = model
        self._image_px = image_px
        self._seeds: Iterator[int] = itertools.count(seed)
        self._ids: Iterator[int] = itertools.count()

    def _image(self) -> ImagePart:
        return ImagePart(draw_image(next(self._seeds), self._image_px))

    def _request(self, image: ImagePart, max_tokens: int) -> GenerateRequest:
        messages = (Message("user", (image, TextPart(_QUESTION))),)
        return GenerateRequest(f"bench-{next(self._ids)}", self._model, messages, SamplingParams(max_tokens=max_tokens))

    async def _answer(self, request: GenerateRequest) -> tuple[float, Usage]:
        """Return the milliseconds until the answer's end, and its tokens."""
        started_s = time.perf_counter()
        async for event in self._client.generate(request):
            if isinstance(event, FinishedEvent):
                usage = event.usage
        return (time.perf_counter() - started_s) * 1e3, usage

    async def chat(
        self, watch: Stopwatch, output_tokens: int, batch_sizes: tuple[int, ...]
    ) -> AsyncIterator[Measurement]:
        """Yield the time to the first token with a new and with a repeated image, then of whole concurrent answers."""
        told = f"a {self._image_px} px image"
        new = await watch.collect_async(self._first_token_of_new_image)
        yield Measurement(f"first token, {told} not seen before", new)
        kept = self._image()

        async def repeated() -> float:
            return (await self._answer(self._request(kept, 1)))[0]

        yield Measurement(f"first token, {told} seen before", await watch.collect_async(repeated))
        for size in batch_sizes:
            yield await self._answers(watch, kept, size, output_tokens)

    async def _first_token_of_new_image(self) -> float:
        return (await self._answer(self._request(self._image(), 1)))[0]

    async def _answers(self, watch: Stopwatch, image: ImagePart, size: int, output_tokens: int) -> Measurement:
        """Return the time until `size` concurrent answers about an image seen before have all ended."""
        tokens: list[int] = []
        spent = self._spending()

        async def together() -> float:
            requests = [self._request(image, output_tokens) for _ in range(size)]
            started_s = time.perf_counter()
            answers = await asyncio.gather(*(self._answer(request) for request in requests))
            took_ms = (time.perf_counter() - started_s) * 1e3
            tokens.extend(usage.completion_tokens for _, usage in answers)
            return took_ms

        times = await watch.collect_async(together)
        mean = sum(tokens) / len(tokens)
        name = f"{counted(size, 'answer')} at once, {mean:.1f} tokens each"
        return Measurement(name, times, energy=spent(len(tokens), mean))

    def _spending(self) -> Callable[[int, float], RequestEnergy | None]:
        """Return what tells, when it is called, the energy of each of so many requests since now."""
        before = self._account.entries()

        def spent(num_requests: int, tokens: float) -> RequestEnergy | None:
            joules = spent_joules(before, self._account.entries())
            return None if joules is None else RequestEnergy(joules / num_requests, tokens)

        return spent

    async def embed(
        self, watch: Stopwatch, batch_sizes: tuple[int, ...], *, reads_texts: bool = True
    ) -> AsyncIterator[Measurement]:
        """Yield the time of requests that embed images, then texts, from encoded bytes and strings to vectors."""
        for size in batch_sizes:
            name = f"embed {counted(size, 'image')} of {self._image_px} px"
            yield await self._embedded(watch, name, size, "images", self._image)
        for size in batch_sizes if reads_texts else ():
            name = f"embed {counted(size, 'text')}"
            yield await self._embedded(watch, name, size, "texts", lambda: TextPart(_CAPTION))

    async def _embedded(
        self, watch: Stopwatch, name: str, size: int, unit: str, make: Callable[[], ImagePart | TextPart]
    ) -> Measurement:
        """Return the time of requests that embed `size` inputs each."""
        num_requests = 0
        spent = self._spending()

        async def embed() -> float:
            nonlocal num_requests
            num_requests += 1
            return await self._embed(tuple(make() for _ in range(size)))

        times = await watch.collect_async(embed)
        return Measurement(name, times, size, unit, energy=spent(num_requests, 0.0))

    async def _embed(self, inputs: tuple[TextPart | ImagePart, ...]) -> float:
        request = EmbedRequest(f"bench-{next(self._ids)}", self._model, inputs)
        started_s = time.perf_counter()
        await self._client.embed(request)
        return (time.perf_counter() - started_s) * 1e3
