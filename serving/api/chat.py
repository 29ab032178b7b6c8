"""`POST /v1/chat/completions`: whole, or streamed as server-sent events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from bundle.errors import ParameterError
from serving.api.answering import Answering, EventStream, Piece
from serving.api.choices import choice_body, deltas, grounding_body, logprobs_body, role_body, whole_body
from serving.api.conversation import conversation_of
from serving.api.disconnect import until_disconnect
from serving.api.errors import error_body
from serving.api.events import DONE, data_event
from serving.api.prefixes import behind_prefix, check_reduces_something
from serving.api.schemas import ChatRequest
from serving.api.service import Service, new_id
from serving.api.usage import end_fields
from serving.api.videos import options_of
from serving.protocol import FinishedEvent, GenerateRequest, VideoPart


@dataclass(frozen=True)
class How:
    """How an answer is told.

    Attributes:
        streams: In pieces.
        includes_usage: The stream ends with the token counts.
        tells_logprobs: With the chances of its tokens.
    """

    streams: bool
    includes_usage: bool = False
    tells_logprobs: bool = False


@dataclass(frozen=True)
class _Asked:
    """What a body asks for: of the engine, how to tell it, and the name of what the conversation begins with."""

    request: GenerateRequest
    how: How
    prefix: str | None = None


def chat_router(service: Service) -> APIRouter:
    """Return the chat route."""
    router = APIRouter(tags=["chat"])

    @router.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        """Answer a conversation that may hold images."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, ChatRequest, partial(_asked, service))
        how, wanted = asked.how, asked.request
        if asked.prefix is not None:
            wanted = await behind_prefix(service, request, asked.prefix, wanted, deadline)
        answering = await Answering.begin(service, request, wanted, deadline)
        del asked, wanted  # its images go as soon as the engine has them
        if how.streams:
            first = await until_disconnect(request.receive, answering.first())
            return EventStream(answering, first, ChatForm(answering, how))
        choices, finished = await until_disconnect(request.receive, answering.whole())
        told = [whole_body(index, choice, how.tells_logprobs) for index, choice in enumerate(choices)]
        return JSONResponse({**head(answering, "chat.completion"), "choices": told, **end_fields(finished)})

    return router


def _asked(service: Service, body: ChatRequest) -> _Asked:
    messages = conversation_of(service, body.messages, options_of(body, service.settings))
    parts = [part for message in messages for part in message.parts]
    if body.video is not None and not any(isinstance(part, VideoPart) for part in parts):
        raise ParameterError("video says how videos are looked at, and no message holds one; leave it out", "video")
    sampling, offer = body.sampling(), body.offer()
    request = GenerateRequest(
        new_id("chatcmpl"),
        body.model or "",
        messages,
        replace(sampling, structure=offer.structure(sampling)),
        body.n or 1,
        body.priority,
        kv=body.compression,
        vision=body.reduction,
        tools=offer.told,
    )
    if body.prefix is None:
        check_reduces_something(request)
    return _Asked(request, How(bool(body.stream), body.includes_usage, body.logprobs is True), body.prefix)


class ChatForm:
    """A stream as OpenAI writes it, to the closing `[DONE]`; a failure is an event with the error body.

    Args:
        answering: What it is of.
        how: Whether logprobs and token counts are told.
    """

    def __init__(self, answering: Answering, how: How) -> None:
        self._answering = answering
        self._tells_logprobs = how.tells_logprobs
        self._includes_usage = how.includes_usage

    def begin(self) -> Iterator[bytes]:
        """Yield the role of every choice."""
        for index in range(self._answering.num_choices):
            yield self._choicedata_event(role_body(index))

    def piece(self, piece: Piece) -> Iterator[bytes]:
        """Yield what a piece says and calls, the logprobs with the first of it; or why its choice ended."""
        logprobs = piece.logprobs
        for delta in deltas(piece.said) or ([{}] if logprobs else []):
            told = logprobs_body(logprobs) if self._tells_logprobs else None
            yield self._choicedata_event(choice_body(piece.index, delta, told, None))
            logprobs = ()
        if piece.reason:
            delta = {} if piece.grounded is None else {"grounding": grounding_body(piece.grounded)}
            yield self._choicedata_event(choice_body(piece.index, delta, None, piece.reason))

    def end(self, finished: FinishedEvent) -> Iterator[bytes]:
        """Yield the counts, where they were asked for, and the end."""
        if self._includes_usage:
            yield data_event({**self._head, "choices": [], **end_fields(finished)})
        yield DONE

    def failure(self, error: Exception) -> Iterator[bytes]:
        """Yield what went wrong, and the end."""
        yield data_event(error_body(error))
        yield DONE

    def _choicedata_event(self, choice: dict[str, Any]) -> bytes:
        body = {**self._head, "choices": [choice]}
        return data_event({**body, "usage": None} if self._includes_usage else body)

    @property
    def _head(self) -> dict[str, Any]:
        return head(self._answering, "chat.completion.chunk")


def head(answering: Answering, kind: str) -> dict[str, Any]:
    """Return how every body of an answer begins."""
    return {
        "id": answering.request_id,
        "object": kind,
        "created": answering.created_s,
        "model": answering.told_model,
    }
