"""What a caller of the engine waits for: first tokens, whole answers, embeddings; everything but HTTP is in it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator

from loadtests.images import draw_image
from loadtests.stopwatch import Measurement, Stopwatch
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
    """

    def __init__(self, client: LocalClient, model: str, image_px: int, seed: int) -> None:
        self._client = client
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

        async def together() -> float:
            requests = [self._request(image, output_tokens) for _ in range(size)]
            started_s = time.perf_counter()
            answers = await asyncio.gather(*(self._answer(request) for request in requests))
            took_ms = (time.perf_counter() - started_s) * 1e3
            tokens.extend(usage.completion_tokens for _, usage in answers)
            return took_ms

        times = await watch.collect_async(together)
        mean = sum(tokens) / len(tokens)
        return Measurement(f"{counted(size, 'answer')} at once, {mean:.1f} tokens each", times)

    async def embed(self, watch: Stopwatch, batch_sizes: tuple[int, ...]) -> AsyncIterator[Measurement]:
        """Yield the time of requests that embed images, then texts, from encoded bytes and strings to vectors."""
        for size in batch_sizes:
            times = await watch.collect_async(lambda size=size: self._embed_images(size))  # type: ignore[misc]
            yield Measurement(f"embed {counted(size, 'image')} of {self._image_px} px", times, size, "images")
        for size in batch_sizes:
            times = await watch.collect_async(lambda size=size: self._embed_texts(size))  # type: ignore[misc]
            yield Measurement(f"embed {counted(size, 'text')}", times, size, "texts")

    async def _embed_images(self, size: int) -> float:
        return await self._embed(tuple(self._image() for _ in range(size)))

    async def _embed_texts(self, size: int) -> float:
        return await self._embed(tuple(TextPart(_CAPTION) for _ in range(size)))

    async def _embed(self, inputs: tuple[TextPart | ImagePart, ...]) -> float:
        request = EmbedRequest(f"bench-{next(self._ids)}", self._model, inputs)
        started_s = time.perf_counter()
        await self._client.embed(request)
        return (time.perf_counter() - started_s) * 1e3
