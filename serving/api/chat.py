"""`POST /v1/chat/completions`: whole, or streamed as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from bundle.errors import ParameterError, PocketVLMError
from bundle.frames.options import FrameOptions
from serving.api.choices import WholeChoice, delta_body, end_body, role_body
from serving.api.contents import FramesContent, ImageContent, TextContent, VideoContent
from serving.api.deadline import Deadline
from serving.api.disconnect import close, contained, finish_within, until_disconnect
from serving.api.errors import error_body
from serving.api.record import RequestRecord, record_of
from serving.api.schemas import ChatMessage, ChatRequest
from serving.api.service import Service, check_count, new_id
from serving.api.videos import num_frames_of, options_of, video_part
from serving.protocol import (
    FinishedEvent,
    GenerateEvent,
    GenerateRequest,
    ImagePart,
    Message,
    TextPart,
    TokenEvent,
    Usage,
    VideoPart,
)

logger = logging.getLogger(__name__)

_PROXY_S = 2.0
"""The edge server's own watch comes first, and closes the connection as well; behind Ray's proxy there is only this."""
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


@dataclass(frozen=True)
class _Asked:
    """What a body asks for.

    Attributes:
        request: For the engine.
        streams: The answer comes in pieces.
        includes_usage: The stream ends with the token counts.
    """

    request: GenerateRequest
    streams: bool
    includes_usage: bool


def chat_router(service: Service) -> APIRouter:
    """Return the chat route."""
    router = APIRouter(tags=["chat"])

    @router.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        """Answer a conversation that may hold images."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, ChatRequest, partial(_asked, service))
        await service.choose(request, asked.request.model, "image-text-to-text")
        chat = Chat.begin(service, asked.request, deadline, record_of(request))
        if not asked.streams:
            del asked  # its images go as soon as the engine has them
            return JSONResponse(await until_disconnect(request.receive, chat.whole()))
        first = await until_disconnect(request.receive, chat.first())
        return EventStream(chat, first, includes_usage=asked.includes_usage)

    return router


def _asked(service: Service, body: ChatRequest) -> _Asked:
    messages = []
    num_parts = sum(len(message.content) for message in body.messages if isinstance(message.content, list))
    check_count(num_parts, service.settings.max_parts, "messages", "parts")
    options = options_of(body, service.settings)
    for index, message in enumerate(body.messages):
        messages.append(Message(_ROLES[message.role], _parts(service, message, options, f"messages.{index}.content")))
    parts = [part for message in messages for part in message.parts]
    check_count(sum(isinstance(part, ImagePart) for part in parts), service.settings.max_images, "messages", "images")
    videos = [part for part in parts if isinstance(part, VideoPart)]
    if body.video is not None and not videos:
        raise ParameterError("video says how videos are looked at, and no message holds one; leave it out", "video")
    check_count(len(videos), service.settings.max_videos, "messages", "videos")
    check_count(sum(map(num_frames_of, videos)), service.settings.max_frames, "messages", "frames")
    if (vision := body.reduction) and vision.keep < 1 and not any(isinstance(p, (ImagePart, VideoPart)) for p in parts):
        raise ParameterError("vision says how images are reduced, and no message holds one; leave it out", "vision")
    request = GenerateRequest(
        new_id("chatcmpl"),
        body.model,
        tuple(messages),
        body.sampling(),
        body.n or 1,
        body.priority,
        kv=body.compression,
        vision=vision,
    )
    return _Asked(request, bool(body.stream), body.includes_usage)


def _parts(service: Service, message: ChatMessage, options: FrameOptions, param: str) -> tuple[Any, ...]:
    if message.content is None or isinstance(message.content, str):
        return (TextPart(message.content or ""),)
    return tuple(_part(service, each, options, f"{param}.{index}") for index, each in enumerate(message.content))


def _part(
    service: Service,
    content: TextContent | ImageContent | VideoContent | FramesContent,
    options: FrameOptions,
    param: str,
) -> TextPart | ImagePart | VideoPart:
    if isinstance(content, (VideoContent, FramesContent)):
        return video_part(content, options, service.settings, param)
    return service.part(content, param)


@dataclass
class Chat:
    """One completion under way.

    Attributes:
        service: Where it runs.
        request_id: As the engine knows it.
        model: Its name.
        events: Of the engine, counted and timed.
        deadline: When it is stopped.
        record: Gets the counts of tokens.
        created_s: Unix time, as the answer tells it.
        num_choices: Of the answer.
        tells_logprobs: They were asked for.
        is_counted: Its end was seen by the metrics; a client that leaves after that aborts nothing.
    """

    service: Service
    request_id: str
    model: str
    events: AsyncIterator[GenerateEvent]
    deadline: Deadline
    record: RequestRecord
    created_s: int
    num_choices: int
    tells_logprobs: bool
    is_counted: bool = False

    @classmethod
    def begin(cls, service: Service, request: GenerateRequest, deadline: Deadline, record: RequestRecord) -> Chat:
        """Hand a request to the engine; nothing here keeps its images."""
        request = replace(request, timeout_s=deadline.deadline_s - time.monotonic())
        events = service.metrics.observed(service.client.generate(request), request.model)
        tells_logprobs = request.sampling.top_logprobs is not None
        return cls(
            service,
            request.request_id,
            request.model,
            events,
            deadline,
            record,
            int(time.time()),
            request.num_choices,
            tells_logprobs,
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
        else:
            self.record.saw_token()
        return event

    async def first(self) -> GenerateEvent:
        """Return the first event: until it is there, a failure can still have a status code of its own."""
        try:
            return await self.next()
        except BaseException:
            await close(self.events)
            raise

    async def whole(self) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        choices = [WholeChoice(index, self.tells_logprobs) for index in range(self.num_choices)]
        try:
            while isinstance(event := await self.next(), TokenEvent):
                choices[event.index].add(event)
        finally:
            await close(self.events)
        return {
            **self._head("chat.completion"),
            "choices": [choice.body() for choice in choices],
            "usage": usage_body(event.usage),
            "timings": asdict(event.timings),
        }

    async def pieces(self, first: GenerateEvent, *, includes_usage: bool) -> AsyncIterator[bytes]:
        """Yield the server-sent events of the answer, to the closing `[DONE]`.

        A failure on the way is an event with the error body in place of what is missing.
        """
        try:
            for index in range(self.num_choices):
                yield self._choice_event(role_body(index), includes_usage)
            event: GenerateEvent = first
            while isinstance(event, TokenEvent):
                if event.text or event.logprobs:
                    yield self._choice_event(delta_body(event, tells_logprobs=self.tells_logprobs), includes_usage)
                ended, event = event, await self.next()
                # A client that has seen the last choice's end may leave: by then, the answer is counted.
                self.is_counted = isinstance(event, FinishedEvent)
                if ended.reason:
                    yield self._choice_event(end_body(ended.index, ended.reason), includes_usage)
            if includes_usage:
                yield self._usage_event(event)
        except Exception as error:
            yield self._failure(error)
        yield b"data: [DONE]\n\n"

    def _failure(self, error: Exception) -> bytes:
        if not isinstance(error, PocketVLMError):
            logger.error("stream %s failed", self.request_id, exc_info=error)
        self.service.metrics.count_error(error, self.model)
        self.is_counted = True
        return _event(error_body(error))

    def _choice_event(self, choice: dict[str, Any], includes_usage: bool) -> bytes:
        body = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return _event({**body, "usage": None} if includes_usage else body)

    def _usage_event(self, finished: FinishedEvent) -> bytes:
        body = {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_body(finished.usage)}
        return _event({**body, "timings": asdict(finished.timings)})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
        }


class EventStream(Response):
    """Sends a chat as it is generated, and stops it when the client goes away or stops reading."""

    media_type = "text/event-stream"

    def __init__(self, chat: Chat, first: GenerateEvent, *, includes_usage: bool) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chat = chat
        self._first = first
        self._includes_usage = includes_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; returns when they are sent or the client is gone."""
        try:
            await until_disconnect(receive, self._send(send))
        except ClientDisconnect:
            if not self._chat.is_counted:
                self._chat.service.metrics.count_abort(self._chat.model)

    async def _send(self, send: Send) -> None:
        pieces = self._chat.pieces(self._first, includes_usage=self._includes_usage)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in pieces:
                await self._taken(send({"type": "http.response.body", "body": piece, "more_body": True}))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await close(pieces)
            await close(self._chat.events)

    async def _taken(self, sending: Awaitable[None]) -> None:
        """Wait until the connection has room again.

        Raises:
            ClientDisconnect: The client took nothing for too long.
        """
        try:
            await finish_within(self._chat.service.settings.stalled_client_s + _PROXY_S, sending)
        except asyncio.TimeoutError as error:
            raise ClientDisconnect from error


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return token counts in OpenAI's form; images' tokens are part of the prompt's."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "cached_image_tokens": usage.cached_image_tokens,
            "cache_rows_before": usage.cache_rows_before,
            "cache_rows_after": usage.cache_rows_after,
            "kept_image_tokens": usage.kept_image_tokens,
        },
    }


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
