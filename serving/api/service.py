"""What every route of one application shares."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fastapi import Request

from bundle.errors import (
    ContextLengthError,
    EngineDeadError,
    ModelNotFoundError,
    ParameterError,
    StartingError,
    TaskError,
)
from bundle.manifest import Task
from serving.api.body import read_body
from serving.api.budget import BodyBudget
from serving.api.contents import ImageContent, JoinedContent, RegionContent, TextContent
from serving.api.credentials import key_of
from serving.api.deadline import Deadline
from serving.api.images import image_part
from serving.api.metrics import Metrics
from serving.api.parsing import Schema, check_content_type, parse_body
from serving.api.record import record_of
from serving.api.recording import Recorder
from serving.api.remote_urls import RemoteUrls, remote_urls
from serving.api.stored_prefixes import PrefixStore
from serving.protocol import (
    EmbedInput,
    EngineClient,
    ImagePart,
    JoinedPart,
    ModelCard,
    TextPart,
    TokensPart,
    found_card,
)
from serving.settings import ApiSettings

if TYPE_CHECKING:
    from serving.api.remote_images import RemoteImages

T = TypeVar("T")

_SMALL_BODY_BYTES = 64 << 10
"""Parsed at once: it takes less than the way to another thread and back."""


@dataclass(frozen=True)
class Service:
    """The engine behind the application, its limits and its counters.

    Attributes:
        client: Given by whoever made the application; started and closed there.
        settings: Limits of a request.
        started_s: Unix time of the application's making.
        metrics: Of this application.
        budget: Of all bodies.
        prefixes: What conversations may begin with; None where none are kept.
        remote: Fetches images; None where nothing is fetched.
        recorder: Writes requests down; None where none are.
        parser: The thread in which large bodies are parsed, one at a time: each takes twice its size for a moment.
        reckoner: The thread in which answers of many numbers are reckoned and written, a piece at a time.
    """

    client: EngineClient
    settings: ApiSettings
    started_s: int
    metrics: Metrics = field(default_factory=Metrics)
    budget: BodyBudget = field(init=False)
    prefixes: PrefixStore | None = field(init=False)
    remote: RemoteImages | None = field(init=False)
    recorder: Recorder | None = field(init=False)
    parser: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "body"))
    reckoner: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "numbers"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", BodyBudget(self.settings.max_bodies_bytes))
        folder = self.settings.prefix_folder
        store = (
            None if folder is None else PrefixStore(folder, self.settings.max_prefix_bytes, self.settings.max_prefixes)
        )
        object.__setattr__(self, "prefixes", store)
        recorder = None if self.settings.recording.folder is None else Recorder(self.settings.recording)
        object.__setattr__(self, "recorder", recorder)
        object.__setattr__(self, "remote", _remote_images(self.settings))

    def deadline(self, request: Request) -> Deadline:
        """Return when the work for a request is stopped.

        Raises:
            ParameterError: Its client asks for a time that cannot be.
        """
        return Deadline.of(request, record_of(request).arrived_s, self.settings.request_timeout_s)

    async def read(
        self,
        request: Request,
        deadline: Deadline,
        schema: type[Schema],
        convert: Callable[[Schema], T],
        *,
        is_recorded: bool = True,
    ) -> T:
        """Return what a request's body asks for.

        Args:
            request: Nothing of its body was read. It holds its share of the budget until it has ended.
            deadline: Of the request.
            schema: Of the body.
            convert: From the checked body to what the route works with; decodes images, and may run in a thread.
            is_recorded: Whether it is written down where requests are: not what changes the server, which is not to be
                asked again.

        Raises:
            PocketVLMError: The body is refused.
            ClientDisconnect: The client went away before its end.
        """
        check_content_type(request)
        share = record_of(request).until_end.enter_context(self.budget.share())
        content = [await deadline.finish(read_body(request, self.settings, share))]
        if self.recorder is not None and is_recorded:
            note = partial(self.recorder.note, record_of(request), request.method, request.url.path)
            record_of(request).until_end.callback(note, content[0], key_of(request.scope))
        is_small = len(content[0]) <= _SMALL_BODY_BYTES
        urls = None if self.remote is None else RemoteUrls()
        work = partial(_parsed, content, schema, convert, self.settings, urls)
        parsed, converted = await self._worked(is_small, deadline, work)
        if self.remote is None or urls is None or not urls.wanted:
            return converted
        await deadline.finish(self.remote.fetch(urls, share))
        return await self._worked(is_small, deadline, partial(_converted, parsed, convert, urls))

    async def _worked(self, is_small: bool, deadline: Deadline, work: Callable[[], T]) -> T:
        """Return the result of work on a body: at once, or from the thread for large ones."""
        if is_small:
            return work()
        return await deadline.finish(asyncio.get_running_loop().run_in_executor(self.parser, work))

    async def card(self, name: str) -> ModelCard:
        """Return a served model, or an adapter of one, by its name or an alias.

        Raises:
            ModelNotFoundError: None has that name.
            EngineDeadError: None has that name yet (a StartingError), or any more.
        """
        cards = await self.client.models()
        wanted = self.settings.aliases.get(name, name)
        if (card := found_card(cards, wanted)) is not None:
            return card
        await self._check_ready()
        raise ModelNotFoundError(f"model {name!r} is not served here; served: {_names(cards)}", "model")

    async def only_card(self, tasks: Collection[Task]) -> ModelCard:
        """Return the one model that a request means which names none: the only one for what it asks, as in vLLM.

        Raises:
            ParameterError: There are several, or none.
        """
        cards = [card for card in await self.client.models() if card.parent is None]
        cards = [card for card in cards if not tasks or card.task in tasks]
        if len(cards) == 1:
            return cards[0]
        await self._check_ready()
        raise ParameterError(f"model: this field is required; served for this: {_names(cards)}", "model")

    async def _check_ready(self) -> None:
        health = await self.client.health()
        if not health.is_ready:
            kind = StartingError if health.is_starting else EngineDeadError
            raise kind(f"requests cannot be served: {health.reason}. Ask /health/ready before sending any.")

    async def choose(self, request: Request, name: str, *tasks: Task) -> str:
        """Return the name that the engine knows a model by, and note it for the counters.

        Args:
            request: That is served.
            name: A served model's, or an alias; empty: the only one.
            tasks: Of which it has to do one; none: whatever it does.

        Raises:
            ModelNotFoundError: None has that name.
            ParameterError: None is named, and there is not just one.
            TaskError: It does something else.
        """
        card = await (self.card(name) if name else self.only_card(tasks))
        record = record_of(request)
        if not record.model:  # a chat behind a prefix asks twice
            self.metrics.count_received(card.name, time.monotonic() - record.arrived_s)
        record.model = card.name
        if tasks and card.task not in tasks:
            raise TaskError(f"model {name!r} does {card.task}; this route wants {' or '.join(tasks)}", "model")
        return card.name

    def embedded(self, content: str | TextContent | ImageContent | JoinedContent | list[int], param: str) -> EmbedInput:
        """Return one input of a request for vectors as the engine takes it.

        Raises:
            ImageError: As `part`.
        """
        if isinstance(content, list):
            return TokensPart(tuple(content))
        if not isinstance(content, JoinedContent):
            return self.part(content, param)
        parts = tuple(self.part(each, f"{param}.content.{index}") for index, each in enumerate(content.content))
        return JoinedPart(parts) if len(parts) > 1 else parts[0]

    def part(self, content: str | TextContent | ImageContent, param: str) -> TextPart | ImagePart:
        """Return one piece of a request as the engine takes it.

        Raises:
            ImageError: The image's URL is not a data URL, or the image is too large.
        """
        if isinstance(content, str):
            return TextPart(content)
        if isinstance(content, TextContent):
            return TextPart(content.text)
        box = content.region if isinstance(content, RegionContent) else None
        return image_part(content.image_url.url, f"{param}.image_url.url", self.settings.max_image_bytes, box)


async def or_cut(work: Awaitable[T], truncate_tokens: int | None) -> T:
    """Return the result of work on texts that a request may let be cut, and say so where one is too long.

    Args:
        work: Of a route that takes `truncate_prompt_tokens`.
        truncate_tokens: What the request says; None: nothing is cut.

    Raises:
        ContextLengthError: A text is too long.
    """
    try:
        return await work
    except ContextLengthError as error:
        if truncate_tokens is not None:
            raise
        told = f"{error.message} Or let it be cut: truncate_prompt_tokens = -1."
        raise ContextLengthError(told, error.param) from error


def _remote_images(settings: ApiSettings) -> RemoteImages | None:
    """Return what fetches images, and import what it needs; None where no host is listed."""
    if not settings.remote.hosts:
        return None
    from serving.api.remote_images import RemoteImages

    return RemoteImages(settings.remote, settings.max_image_bytes)


def _parsed(
    content: list[bytes],
    schema: type[Schema],
    convert: Callable[[Schema], T],
    limits: ApiSettings,
    urls: RemoteUrls | None,
) -> tuple[Schema, T]:
    parsed = parse_body(content, schema, limits)
    return parsed, _converted(parsed, convert, urls)


def _converted(parsed: Schema, convert: Callable[[Schema], T], urls: RemoteUrls | None) -> T:
    with remote_urls(urls):
        return convert(parsed)


def _names(cards: Sequence[ModelCard]) -> str:
    return ", ".join(card.name for card in cards) or "none"


def count_prompt(service: Service, request: Request, tokens: int) -> None:
    """Count the tokens of a request that generates none."""
    record = record_of(request)
    record.prompt_tokens = tokens
    record.charge(tokens)
    service.metrics.count_prompt(record.model, tokens)


def check_count(count: int, limit: int, param: str, noun: str) -> None:
    """Refuse more of something than one request may hold.

    Raises:
        ParameterError: `count` is above `limit`.
    """
    if count > limit:
        raise ParameterError(f"{param}: {count} {noun}; one request may hold {limit}", param)


def check_images(service: Service, inputs: Sequence[EmbedInput], param: str) -> None:
    """Refuse more images than one request may hold, those within inputs of several parts among them.

    Raises:
        ParameterError: They are more.
    """
    parts = [part for each in inputs for part in (each.parts if isinstance(each, JoinedPart) else (each,))]
    count = sum(isinstance(part, ImagePart) for part in parts)
    check_count(count, service.settings.max_images, param, "images")


def new_id(prefix: str) -> str:
    """Return an id that no other request has, whatever the clients send."""
    return f"{prefix}-{uuid.uuid4().hex}"
