"""One answer under way: the engine's events as text and calls, in whatever form a route writes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bundle.errors import PocketVLMError
from bundle.grounding import Grounded
from bundle.manifest import ANSWERING_TASKS
from serving.api.deadline import Deadline
from serving.api.disconnect import close, contained, finish_within, until_disconnect
from serving.api.events import comment
from serving.api.record import RequestRecord, record_of
from serving.api.service import Service
from serving.api.tool_calls import CallBegun, CallReader, Said, SaidText
from serving.protocol import FinishedEvent, GenerateEvent, GenerateRequest, TokenEvent, TokenLogprob, WaitingEvent

logger = logging.getLogger(__name__)

_PROXY_S = 2.0
"""The edge server's own watch comes first, and closes the connection as well; behind Ray's proxy there is only this."""
Ending = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Piece:
    """What one event adds to a choice.

    Attributes:
        index: Of the choice.
        said: Texts and parts of calls.
        logprobs: Of the tokens that the event is of.
        reason: Why the choice ended; its last piece has one, and no other.
        stopped_by: The stop text that ended it.
        grounded: What the choice says and where that lies, with its last piece.
    """

    index: int
    said: tuple[Said, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    reason: Ending | None = None
    stopped_by: str | None = None
    grounded: Grounded | None = None


@dataclass
class GatheredText:
    """A text as it is gathered: all that is said between two calls."""

    text: str


@dataclass
class GatheredCall:
    """A call as it is gathered."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Gathered:
    """One choice as it is gathered.

    Attributes:
        items: Texts and calls so far, in their order.
        logprobs: Of the tokens so far.
        reason: Why it ended, once it has.
        stopped_by: The stop text that ended it.
        grounded: What it says and where that lies; None where the model says no boxes.
    """

    items: list[GatheredText | GatheredCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: Ending | None = None
    stopped_by: str | None = None
    grounded: Grounded | None = None

    @property
    def text(self) -> str:
        """What is said, all together."""
        return "".join(item.text for item in self.items if isinstance(item, GatheredText))

    @property
    def calls(self) -> list[GatheredCall]:
        """What is called."""
        return [item for item in self.items if isinstance(item, GatheredCall)]

    def add(self, piece: Piece) -> None:
        """Take in a piece."""
        for said in piece.said:
            self._add(said)
        self.logprobs += piece.logprobs
        self.reason, self.stopped_by, self.grounded = piece.reason, piece.stopped_by, piece.grounded

    def _add(self, said: Said) -> None:
        last = self.items[-1] if self.items else None
        if isinstance(said, CallBegun):
            self.items.append(GatheredCall(said.id, said.name))
        elif isinstance(said, SaidText) and isinstance(last, GatheredText):
            last.text += said.text
        elif isinstance(said, SaidText):
            self.items.append(GatheredText(said.text))
        elif isinstance(last, GatheredCall):
            last.arguments += said.text


class Form(Protocol):
    """How a route writes a stream: what comes first, each piece, the end, and a failure in place of what is missing."""

    def begin(self) -> Iterable[bytes]:
        """Yield what comes before the first piece."""
        ...

    def piece(self, piece: Piece) -> Iterable[bytes]:
        """Yield the events of a piece."""
        ...

    def end(self, finished: FinishedEvent) -> Iterable[bytes]:
        """Yield what comes behind the last piece."""
        ...

    def failure(self, error: Exception) -> Iterable[bytes]:
        """Yield what ends a stream that failed."""
        ...


@dataclass
class Answering:
    """One request's answer.

    Attributes:
        service: Where it runs.
        request_id: As the engine knows it.
        model: Its name.
        told_model: The name that the answer tells: the one that was asked for.
        events: Of the engine, counted and timed.
        deadline: When it is stopped.
        record: Gets the counts of tokens.
        created_s: Unix time, as the answer tells it.
        readers: Of each choice's calls; none where no function was offered.
        num_choices: Of the answer.
        is_counted: Its end was seen by the metrics; a client that leaves after that aborts nothing.
        num_charged: Tokens that were taken from what its key may.
    """

    service: Service
    request_id: str
    model: str
    told_model: str
    events: AsyncIterator[GenerateEvent]
    deadline: Deadline
    record: RequestRecord
    created_s: int
    num_choices: int
    readers: tuple[CallReader, ...] = ()
    is_counted: bool = False
    num_charged: int = 0

    @classmethod
    async def begin(cls, service: Service, request: Request, asked: GenerateRequest, deadline: Deadline) -> Answering:
        """Hand what is asked to the engine, once its model is known; nothing here keeps its images.

        Args:
            service: Where it runs.
            request: That asks.
            asked: Of the engine; its model may be an alias, or empty.
            deadline: When it is stopped.

        Raises:
            RequestError: No served model does that under that name.
        """
        model, record = await service.choose(request, asked.model, *ANSWERING_TASKS), record_of(request)
        record.answer = asked.request_id
        own = replace(asked, model=model, timeout_s=deadline.deadline_s - time.monotonic())
        events = service.metrics.observed(service.client.generate(own), model)
        names = [tool.name for tool in asked.tools]
        readers = tuple(CallReader(names) for _ in range(asked.num_choices)) if names else ()
        told = asked.model or model
        return cls(
            service, own.request_id, model, told, events, deadline, record, int(time.time()), own.num_choices, readers
        )

    async def next(self) -> GenerateEvent:
        """Return the next event.

        Raises:
            DeadlineError: It did not come in time.
        """
        event = await self.deadline.finish(contained(anext(self.events)))
        if isinstance(event, FinishedEvent):
            self.record.prompt_tokens = event.usage.prompt_tokens
            self.record.completion_tokens = event.usage.completion_tokens
        elif isinstance(event, TokenEvent):
            self.record.saw_token()
        self._charge(event)
        return event

    def _charge(self, event: GenerateEvent) -> None:
        """Take what was read and written from what the key may: as it comes, for a client may leave on the way."""
        if isinstance(event, WaitingEvent):
            return
        if isinstance(event, FinishedEvent):
            total = event.usage.prompt_tokens + event.usage.completion_tokens
        else:
            total = self.num_charged + event.prompt_tokens + len(event.token_ids)
        self.record.charge(total - self.num_charged)
        self.num_charged = total

    async def _begun(self) -> TokenEvent | FinishedEvent:
        """Return the next event that is of the answer itself."""
        while isinstance(event := await self.next(), WaitingEvent):
            pass
        return event

    async def first(self) -> GenerateEvent:
        """Return the first event: until it is there, a failure can still have a status code of its own."""
        try:
            return await self.next()
        except BaseException:
            await close(self.events)
            raise

    async def whole(self) -> tuple[list[Gathered], FinishedEvent]:
        """Return every choice, and the end."""
        choices = [Gathered() for _ in range(self.num_choices)]
        finished = await self.fed(lambda piece: choices[piece.index].add(piece))
        return choices, finished

    async def fed(self, take: Callable[[Piece], None]) -> FinishedEvent:
        """Hand every piece to a function, and return the end."""
        try:
            while isinstance(event := await self._begun(), TokenEvent):
                take(self._read(event))
        finally:
            await close(self.events)
        return event

    async def written(self, first: GenerateEvent, form: Form) -> AsyncIterator[bytes]:
        """Yield the whole stream as a form writes it."""
        try:
            waiting = first
            while isinstance(waiting, WaitingEvent):
                yield comment(waiting.reason)
                waiting = await self.next()
            for each in form.begin():
                yield each
            event: TokenEvent | FinishedEvent = waiting
            while isinstance(event, TokenEvent):
                piece = self._read(event)
                for each in form.piece(replace(piece, reason=None)):
                    yield each
                event = await self._begun()
                # A client that has seen the last choice's end may leave: by then, the answer is counted.
                self.is_counted = isinstance(event, FinishedEvent)
                if piece.reason:
                    for each in form.piece(replace(piece, said=(), logprobs=())):
                        yield each
            for each in form.end(event):
                yield each
        except Exception as error:
            self._count(error)
            for each in form.failure(error):
                yield each

    def _count(self, error: Exception) -> None:
        if not isinstance(error, PocketVLMError):
            logger.error("stream %s failed", self.request_id, exc_info=error)
        self.service.metrics.count_error(error, self.model)
        self.is_counted = True

    def _read(self, event: TokenEvent) -> Piece:
        if not self.readers:
            said = (SaidText(event.text),) if event.text else ()
            return Piece(event.index, said, event.logprobs, event.reason, event.stopped_by, event.grounded)
        reader = self.readers[event.index]
        found = reader.push(event.text)
        if event.reason:
            found += reader.finish()
        calls = event.reason == "stop" and event.stopped_by is None and reader.num_calls
        reason = "tool_calls" if calls else event.reason
        return Piece(event.index, tuple(found), event.logprobs, reason, event.stopped_by, event.grounded)


class EventStream(Response):
    """Sends an answer as it is generated, and stops it when the client goes away or stops reading."""

    media_type = "text/event-stream"

    def __init__(self, answering: Answering, first: GenerateEvent, form: Form) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._answering = answering
        self._first = first
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; returns when they are sent or the client is gone."""
        try:
            await until_disconnect(receive, self._send(send))
        except ClientDisconnect:
            if not self._answering.is_counted:
                self._answering.service.metrics.count_abort(self._answering.model)

    async def _send(self, send: Send) -> None:
        pieces = self._answering.written(self._first, self._form)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in pieces:
                await self._taken(send({"type": "http.response.body", "body": piece, "more_body": True}))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await close(pieces)
            await close(self._answering.events)

    async def _taken(self, sending: Awaitable[None]) -> None:
        """Wait until the connection has room again.

        Raises:
            ClientDisconnect: The client took nothing for too long.
        """
        try:
            await finish_within(self._answering.service.settings.stalled_client_s + _PROXY_S, sending)
        except asyncio.TimeoutError as error:
            raise ClientDisconnect from error
