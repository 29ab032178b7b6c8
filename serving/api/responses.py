"""`POST /v1/responses`: OpenAI's newer API, without anything that is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serving.api.answering import Answering, Ending, EventStream, Piece
from serving.api.choices import logprobs_body
from serving.api.disconnect import until_disconnect
from serving.api.errors import response_error_body
from serving.api.events import named_event
from serving.api.response_schemas import ResponsesBody, messages_of
from serving.api.service import Service, new_id
from serving.api.tool_calls import CallArguments, CallBegun, Said, SaidText
from serving.protocol import FinishedEvent, GenerateRequest, TokenLogprob, Usage

_ECHOED = ("instructions", "max_output_tokens", "temperature", "top_p", "user", "safety_identifier", "prompt_cache_key")


@dataclass(frozen=True)
class _Asked:
    """What a body asks for.

    Attributes:
        request: Of the engine.
        streams: The answer comes in pieces.
        echo: Fields of the body that every answer repeats.
    """

    request: GenerateRequest
    streams: bool
    echo: dict[str, Any]


def responses_router(service: Service) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["responses"])

    @router.post("/v1/responses")
    async def respond(request: Request) -> Response:
        """Answer a conversation that may hold images; nothing of it is stored."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, ResponsesBody, partial(_asked, service))
        answering = await Answering.begin(service, request, asked.request, deadline)
        form, streams = ResponseForm(answering, asked.echo), asked.streams
        del asked  # its images go as soon as the engine has them
        if streams:
            first = await until_disconnect(request.receive, answering.first())
            return EventStream(answering, first, form)
        return JSONResponse(form.whole(await until_disconnect(request.receive, answering.fed(form.take))))

    return router


def _asked(service: Service, body: ResponsesBody) -> _Asked:
    sampling, offer = body.sampling(), body.offer()
    request = GenerateRequest(
        new_id("resp"),
        body.model or "",
        messages_of(service, body),
        replace(sampling, structure=offer.structure(sampling)),
        tools=offer.told,
    )
    told = body.model_dump(mode="json", by_alias=True, include={"tools", "tool_choice", "text", *_ECHOED})
    echo = {
        **told,
        "tools": told["tools"] or [],
        "tool_choice": told["tool_choice"] or "auto",
        "text": {"format": (told["text"] or {}).get("format") or {"type": "text"}},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "metadata": body.metadata or {},
        "top_logprobs": body.top_logprobs or 0,
    }
    return _Asked(request, bool(body.stream), echo)


@dataclass
class _Item:
    """A text or a call as it is told.

    Attributes:
        id: Of the item.
        text: What is said, or the arguments.
        name: Of the function; None where it is a text.
        call_id: Of the call.
        logprobs: Of a text's tokens.
        is_cut: The answer ended within it.
    """

    id: str
    text: str = ""
    name: str | None = None
    call_id: str = ""
    logprobs: Sequence[TokenLogprob] = ()
    is_cut: bool = False

    def body(self, status: str | None = None) -> dict[str, Any]:
        """Return it as part of a response."""
        status = status or ("incomplete" if self.is_cut else "completed")
        if self.name is None:
            content = [self.part()] if status != "in_progress" else []
            return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content}
        told = {"call_id": self.call_id, "name": self.name, "arguments": self.text, "status": status}
        return {"id": self.id, "type": "function_call", **told}

    def part(self) -> dict[str, Any]:
        """Return a text as part of a message."""
        logprobs = logprobs_body(self.logprobs)["content"]
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": logprobs}


class ResponseForm:
    """A stream as OpenAI writes responses: every item's beginning, pieces and end, and the whole response at last.

    Args:
        answering: What it is of.
        echo: Fields of the request that every answer repeats.
    """

    def __init__(self, answering: Answering, echo: dict[str, Any]) -> None:
        self._answering = answering
        self._echo = echo
        self._number = -1
        self._items: list[_Item] = []
        self._is_open = False
        self._reason: Ending | None = None
        self._untold: tuple[TokenLogprob, ...] = ()

    def begin(self) -> Iterator[bytes]:
        """Yield the empty response."""
        body = _body(self._answering, self._echo, [], None, None)
        yield self._event("response.created", response=body)
        yield self._event("response.in_progress", response=body)

    def piece(self, piece: Piece) -> Iterator[bytes]:
        """Yield what a piece adds to the items."""
        self._untold += piece.logprobs
        for said in piece.said:
            yield from self._said(said)
        self._reason = piece.reason or self._reason

    def take(self, piece: Piece) -> None:
        """Add a piece to the items of an answer that is not streamed."""
        for _ in self.piece(piece):
            continue

    def whole(self, finished: FinishedEvent) -> dict[str, Any]:
        """Return the whole response."""
        if self._items:
            self._items[-1].is_cut = self._reason == "length"
        return _body(self._answering, self._echo, self._items, self._reason, finished.usage)

    def end(self, finished: FinishedEvent) -> Iterator[bytes]:
        """Yield the end of the last item, and the whole response."""
        body = self.whole(finished)
        yield from self._closed()
        yield self._event(f"response.{body['status']}", response=body)

    def failure(self, error: Exception) -> Iterator[bytes]:
        """Yield what went wrong."""
        self._number += 1
        yield named_event(response_error_body(error, self._number))

    def _said(self, said: Said) -> Iterator[bytes]:
        if isinstance(said, CallBegun):
            self._untold = ()  # of the call's mark, which is no text
            yield from self._opened(_Item(new_id("fc"), name=said.name, call_id=said.id))
        elif isinstance(said, SaidText) and not (self._is_open and self._items[-1].name is None):
            yield from self._opened(_Item(new_id("msg")))
            yield self._of_item("response.content_part.added", content_index=0, part=self._items[-1].part())
        if isinstance(said, SaidText):
            item = self._items[-1]
            item.text, item.logprobs = item.text + said.text, (*item.logprobs, *self._untold)
            told, self._untold = logprobs_body(self._untold)["content"], ()
            yield self._of_item("response.output_text.delta", content_index=0, delta=said.text, logprobs=told)
        elif isinstance(said, CallArguments):
            self._untold = ()
            self._items[-1].text += said.text
            yield self._of_item("response.function_call_arguments.delta", delta=said.text)

    def _opened(self, item: _Item) -> Iterator[bytes]:
        yield from self._closed()
        self._items.append(item)
        self._is_open = True
        yield self._event(
            "response.output_item.added", output_index=len(self._items) - 1, item=item.body("in_progress")
        )

    def _closed(self) -> Iterator[bytes]:
        if not self._is_open:
            return
        self._is_open = False
        item = self._items[-1]
        if item.name is None:
            part = item.part()
            yield self._of_item("response.output_text.done", content_index=0, text=item.text, logprobs=part["logprobs"])
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        else:
            yield self._of_item("response.function_call_arguments.done", name=item.name, arguments=item.text)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item.body())

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._items[-1].id, output_index=len(self._items) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return named_event({"type": kind, "sequence_number": self._number, **fields})


def _body(
    answering: Answering, echo: dict[str, Any], items: Sequence[_Item], reason: Ending | None, usage: Usage | None
) -> dict[str, Any]:
    """Return a response; without usage, one that has only begun."""
    is_cut = reason == "length"
    return {
        "id": answering.request_id,
        "object": "response",
        "created_at": answering.created_s,
        "status": "in_progress" if usage is None else "incomplete" if is_cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "model": answering.told_model,
        "output": [item.body() for item in items],
        "usage": None if usage is None else _usage(usage),
        "previous_response_id": None,
        "store": False,
        "background": False,
        "truncation": "disabled",
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        **echo,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
