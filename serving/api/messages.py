"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic_core import from_json

from bundle.manifest import ANSWERING_TASKS
from serving.api.answering import Answering, EventStream, Gathered, GatheredCall, Piece
from serving.api.disconnect import contained, until_disconnect
from serving.api.errors import message_error_body
from serving.api.events import named_event
from serving.api.message_schemas import CountBody, MessagesBody, messages_of
from serving.api.service import Service, new_id
from serving.api.tool_calls import CallArguments, CallBegun, Said, SaidText
from serving.protocol import FinishedEvent, GenerateRequest, TokenizeRequest, Usage

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def messages_router(service: Service) -> APIRouter:
    """Return both routes."""
    router = APIRouter(tags=["messages"])

    @router.post("/v1/messages")
    async def answer(request: Request) -> Response:
        """Answer a conversation that may hold images, as Anthropic's clients write it."""
        deadline = service.deadline(request)
        asked, streams = await service.read(request, deadline, MessagesBody, partial(_asked, service))
        answering = await Answering.begin(service, request, asked, deadline)
        del asked  # its images go as soon as the engine has them
        if streams:
            first = await until_disconnect(request.receive, answering.first())
            return EventStream(answering, first, MessageForm(answering))
        [choice], finished = await until_disconnect(request.receive, answering.whole())
        blocks = _blocks(choice)
        is_called = any(block["type"] == "tool_use" for block in blocks)
        reason = "stop" if choice.reason == "tool_calls" and not is_called else choice.reason
        ended = {**_ending(reason, choice.stopped_by), "usage": _usage(finished.usage)}
        return JSONResponse({**_head(answering), "content": blocks, **ended})

    @router.post("/v1/messages/count_tokens")
    async def count(request: Request) -> Response:
        """Count the tokens of a conversation, its images and functions among them."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, CountBody, partial(_counted, service))
        model = await service.choose(request, asked.model, *ANSWERING_TASKS)
        with service.metrics.one_answer(model):
            work = deadline.finish(contained(service.client.tokenize(replace(asked, model=model))))
            found = await until_disconnect(request.receive, work)
        return JSONResponse({"input_tokens": len(found.token_ids)})

    return router


def _asked(service: Service, body: MessagesBody) -> tuple[GenerateRequest, bool]:
    sampling, offer = body.sampling(), body.offer()
    request = GenerateRequest(
        new_id("msg"),
        body.model or "",
        messages_of(service, body),
        replace(sampling, structure=offer.structure(sampling)),
        tools=offer.told,
    )
    return request, bool(body.stream)


def _counted(service: Service, body: CountBody) -> TokenizeRequest:
    return TokenizeRequest(new_id("msg"), body.model or "", messages_of(service, body), body.offer().told)


class MessageForm:
    """A stream as Anthropic writes it: the message, its blocks one after another, and its end.

    Args:
        answering: What it is of.
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._index = -1
        self._open: type[Said] | None = None
        self._ending: dict[str, Any] = {}

    def begin(self) -> Iterator[bytes]:
        """Yield the empty message; its tokens are counted at the end."""
        message = {**_head(self._answering), "content": [], **_ending(None, None), "usage": _usage(Usage(0, 0))}
        yield named_event({"type": "message_start", "message": message})

    def piece(self, piece: Piece) -> Iterator[bytes]:
        """Yield what a piece adds to the blocks."""
        for said in piece.said:
            yield from self._said(said)
        if piece.reason:
            self._ending = _ending(piece.reason, piece.stopped_by)

    def end(self, finished: FinishedEvent) -> Iterator[bytes]:
        """Yield the end of the last block, why the answer ended, and its counts."""
        yield from self._closed()
        yield named_event({"type": "message_delta", "delta": self._ending, "usage": _usage(finished.usage)})
        yield named_event({"type": "message_stop"})

    def failure(self, error: Exception) -> Iterator[bytes]:
        """Yield what went wrong."""
        yield named_event(message_error_body(error))

    def _said(self, said: Said) -> Iterator[bytes]:
        if isinstance(said, SaidText):
            if self._open is not SaidText:
                yield from self._opened(SaidText, {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": said.text})
        elif isinstance(said, CallBegun):
            block = {"type": "tool_use", "id": said.id, "name": said.name, "input": {}}
            yield from self._opened(CallArguments, block)
        else:
            yield self._delta({"type": "input_json_delta", "partial_json": said.text})

    def _opened(self, kind: type[Said], block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._closed()
        self._index += 1
        self._open = kind
        yield named_event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _closed(self) -> Iterator[bytes]:
        if self._open is not None:
            yield named_event({"type": "content_block_stop", "index": self._index})
        self._open = None

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return named_event({"type": "content_block_delta", "index": self._index, "delta": delta})


def _head(answering: Answering) -> dict[str, Any]:
    return {"id": answering.request_id, "type": "message", "role": "assistant", "model": answering.told_model}


def _ending(reason: str | None, stopped_by: str | None) -> dict[str, Any]:
    told = _REASONS[reason] if reason else None
    return {"stop_reason": "stop_sequence" if stopped_by is not None else told, "stop_sequence": stopped_by}


def _blocks(choice: Gathered) -> list[dict[str, Any]]:
    return [
        _use(each) if isinstance(each, GatheredCall) else {"type": "text", "text": each.text} for each in choice.items
    ]


def _use(call: GatheredCall) -> dict[str, Any]:
    """Return a call; of one that was cut, the arguments that are there. One whose arguments are no JSON is text."""
    try:
        arguments = from_json(call.arguments or "{}", allow_partial=True, allow_inf_nan=False)
    except ValueError:
        return {"type": "text", "text": f'{{"name": "{call.name}", "arguments": {call.arguments}}}'}
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _usage(usage: Usage) -> dict[str, Any]:
    """Return the counts; tokens that were read for an earlier request are no part of `input_tokens`."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
