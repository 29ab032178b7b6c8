"""`POST /v1/chat/completions`: whole, or streamed as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from bundle.errors import ParameterError
from bundle.frames.options import FrameOptions
from serving.api.answering import Answering, EventStream, Piece
from serving.api.choices import choice_body, deltas, logprobs_body, role_body, whole_body
from serving.api.contents import FramesContent, ImageContent, TextContent, VideoContent
from serving.api.disconnect import until_disconnect
from serving.api.errors import error_body
from serving.api.history import OpenCalls, call_of
from serving.api.record import record_of
from serving.api.schemas import AssistantMessage, ChatMessage, ChatRequest, ToolMessage
from serving.api.service import Service, check_count, new_id
from serving.api.videos import num_frames_of, options_of, video_part
from serving.protocol import (
    FinishedEvent,
    GenerateRequest,
    ImagePart,
    Message,
    TextPart,
    ToolCall,
    Usage,
    VideoPart,
)

_DONE = b"data: [DONE]\n\n"
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


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
    """What a body asks for: of the engine, and how to tell it."""

    request: GenerateRequest
    how: How


def chat_router(service: Service) -> APIRouter:
    """Return the chat route."""
    router = APIRouter(tags=["chat"])

    @router.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        """Answer a conversation that may hold images."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, ChatRequest, partial(_asked, service))
        await service.choose(request, asked.request.model, "image-text-to-text")
        how = asked.how
        answering = Answering.begin(service, asked.request, deadline, record_of(request))
        del asked  # its images go as soon as the engine has them
        if how.streams:
            first = await until_disconnect(request.receive, answering.first())
            return EventStream(answering, first, ChatForm(answering, how))
        choices, finished = await until_disconnect(request.receive, answering.whole())
        told = [whole_body(index, choice, how.tells_logprobs) for index, choice in enumerate(choices)]
        return JSONResponse({**head(answering, "chat.completion"), "choices": told, **end_fields(finished)})

    return router


def _asked(service: Service, body: ChatRequest) -> _Asked:
    messages = _messages(service, body)
    parts = [part for message in messages for part in message.parts]
    check_count(sum(isinstance(part, ImagePart) for part in parts), service.settings.max_images, "messages", "images")
    videos = [part for part in parts if isinstance(part, VideoPart)]
    if body.video is not None and not videos:
        raise ParameterError("video says how videos are looked at, and no message holds one; leave it out", "video")
    check_count(len(videos), service.settings.max_videos, "messages", "videos")
    check_count(sum(map(num_frames_of, videos)), service.settings.max_frames, "messages", "frames")
    if (vision := body.reduction) and vision.keep < 1 and not any(isinstance(p, (ImagePart, VideoPart)) for p in parts):
        raise ParameterError("vision says how images are reduced, and no message holds one; leave it out", "vision")
    sampling, offer = body.sampling(), body.offer()
    request = GenerateRequest(
        new_id("chatcmpl"),
        body.model,
        messages,
        replace(sampling, structure=offer.structure(sampling)),
        body.n or 1,
        body.priority,
        kv=body.compression,
        vision=vision,
        tools=offer.told,
    )
    return _Asked(request, How(bool(body.stream), body.includes_usage, body.logprobs is True))


def _messages(service: Service, body: ChatRequest) -> tuple[Message, ...]:
    num_parts = sum(len(message.content) for message in body.messages if isinstance(message.content, list))
    check_count(num_parts, service.settings.max_parts, "messages", "parts")
    options = options_of(body, service.settings)
    messages, open_calls = list[Message](), OpenCalls()
    for index, message in enumerate(body.messages):
        param = f"messages.{index}"
        parts = _parts(service, message, options, f"{param}.content")
        if isinstance(message, ToolMessage):
            open_calls.close(message.tool_call_id, f"{param}.tool_call_id")
            messages.append(Message("tool", parts))
            continue
        open_calls.check_none(param)
        calls = _calls(message, f"{param}.tool_calls")
        open_calls.add(calls, f"{param}.tool_calls")
        messages.append(Message(_ROLES[message.role], () if calls and not message.content else parts, calls))
    open_calls.check_none("messages")
    return tuple(messages)


def _calls(message: ChatMessage, param: str) -> tuple[ToolCall, ...]:
    fields = (message.tool_calls if isinstance(message, AssistantMessage) else None) or ()
    return tuple(call_of(field, f"{param}.{place}") for place, field in enumerate(fields))


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
            yield self._choice_event(role_body(index))

    def piece(self, piece: Piece) -> Iterator[bytes]:
        """Yield what a piece says and calls, the logprobs with the first of it; or why its choice ended."""
        logprobs = piece.logprobs
        for delta in deltas(piece.said) or ([{}] if logprobs else []):
            told = logprobs_body(logprobs) if self._tells_logprobs else None
            yield self._choice_event(choice_body(piece.index, delta, told, None))
            logprobs = ()
        if piece.reason:
            yield self._choice_event(choice_body(piece.index, {}, None, piece.reason))

    def end(self, finished: FinishedEvent) -> Iterator[bytes]:
        """Yield the counts, where they were asked for, and the end."""
        if self._includes_usage:
            yield _event({**self._head, "choices": [], **end_fields(finished)})
        yield _DONE

    def failure(self, error: Exception) -> Iterator[bytes]:
        """Yield what went wrong, and the end."""
        yield _event(error_body(error))
        yield _DONE

    def _choice_event(self, choice: dict[str, Any]) -> bytes:
        body = {**self._head, "choices": [choice]}
        return _event({**body, "usage": None} if self._includes_usage else body)

    @property
    def _head(self) -> dict[str, Any]:
        return head(self._answering, "chat.completion.chunk")


def head(answering: Answering, kind: str) -> dict[str, Any]:
    """Return how every body of an answer begins."""
    return {
        "id": answering.request_id,
        "object": kind,
        "created": answering.created_s,
        "model": answering.model,
    }


def end_fields(finished: FinishedEvent) -> dict[str, Any]:
    """Return what a finished answer counts."""
    return {"usage": usage_body(finished.usage), "timings": asdict(finished.timings)}


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
