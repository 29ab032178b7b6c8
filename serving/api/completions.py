"""`POST /v1/completions`: a text that the model goes on with, as it is, without a chat template."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bundle.errors import ParameterError
from serving.api.answering import Answering, Ending, EventStream, Piece
from serving.api.disconnect import until_disconnect
from serving.api.errors import error_body
from serving.api.events import DONE, data_event
from serving.api.fields import Name, Off, OffOrFalse, OffOrOne, Text, Unbuilt
from serving.api.sampling_fields import MOST_TOP_LOGPROBS, SamplingFields
from serving.api.schemas import StreamOptions
from serving.api.service import Service, new_id
from serving.api.tool_calls import SaidText
from serving.api.usage import end_fields
from serving.protocol import FinishedEvent, GenerateRequest, TokenLogprob

_DEFAULT_TOKENS = 16
"""OpenAI's and vLLM's."""


def _one_prompt(value: Any) -> Any:
    """Take the one text of a list of one, as clients write it."""
    if not isinstance(value, list):
        return value
    if len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if value and isinstance(value[0], (int, list)):
        raise PydanticCustomError("token_ids", "token ids are not taken; send the text")
    raise PydanticCustomError("several_prompts", "one request goes on with one text; send one request for each")


class CompletionRequest(SamplingFields):
    """The body of `POST /v1/completions`. `prompt` is text alone: nothing in it is a control token, and no image.

    `model` may be left out where only one model generates; `max_tokens` is 16 where it is.
    """

    model: Name | None = None
    prompt: Annotated[Text, BeforeValidator(_one_prompt)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)
    user: Text | None = None

    echo: OffOrFalse = None
    suffix: Annotated[Any, Unbuilt(("",))] = None
    best_of: OffOrOne = None
    length_penalty: OffOrOne = None
    use_beam_search: OffOrFalse = None
    prompt_logprobs: Off = None
    add_special_tokens: Annotated[Any, Unbuilt((True,))] = None
    skip_special_tokens: Annotated[Any, Unbuilt((True,))] = None

    @model_validator(mode="after")
    def _check_stream(self) -> CompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options is only allowed with stream: true", "stream_options")
        return self


@dataclass(frozen=True)
class _How:
    """How an answer is told: in pieces, with its counts at the end of them, with logprobs."""

    streams: bool
    includes_usage: bool
    tells_logprobs: bool


def completions_router(service: Service) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["chat"])

    @router.post("/v1/completions")
    async def complete(request: Request) -> Response:
        """Go on with a text; models that were trained to chat want /v1/chat/completions."""
        deadline = service.deadline(request)
        asked, how = await service.read(request, deadline, CompletionRequest, _asked)
        answering = await Answering.begin(service, request, asked, deadline)
        form = CompletionForm(answering, how.tells_logprobs, how.includes_usage)
        if how.streams:
            first = await until_disconnect(request.receive, answering.first())
            return EventStream(answering, first, form)
        choices, finished = await until_disconnect(request.receive, answering.whole())
        told = [form.choice(index, choice.text, choice.logprobs, choice.reason) for index, choice in enumerate(choices)]
        return JSONResponse({**form.head, "choices": told, **end_fields(finished)})

    return router


def _asked(body: CompletionRequest) -> tuple[GenerateRequest, _How]:
    request = GenerateRequest(
        new_id("cmpl"),
        body.model or "",
        (),
        body.sampling_of(body.max_tokens or _DEFAULT_TOKENS, body.logprobs),
        body.n or 1,
        body.priority,
        text=body.prompt,
    )
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return request, _How(bool(body.stream), usage, body.logprobs is not None)


class _Place:
    """Where in a choice's text its next token begins: a character of several tokens counts once, with the last."""

    def __init__(self) -> None:
        self._num_characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of_next(self, data: bytes) -> int:
        """Return how many characters are whole before a token, and move behind it."""
        before = self._num_characters
        self._num_characters += len(self._decoder.decode(data))
        return before


class CompletionForm:
    """An answer as OpenAI writes completions, whole or in events, to the closing `[DONE]`.

    Args:
        answering: What it is of.
        tells_logprobs: They were asked for.
        includes_usage: The stream ends with the token counts.
    """

    def __init__(self, answering: Answering, tells_logprobs: bool, includes_usage: bool) -> None:
        self._tells_logprobs = tells_logprobs
        self._includes_usage = includes_usage
        self._places = [_Place() for _ in range(answering.num_choices)]
        self.head = {
            "id": answering.request_id,
            "object": "text_completion",
            "created": answering.created_s,
            "model": answering.told_model,
        }

    def begin(self) -> Iterator[bytes]:
        """Yield nothing: the first event has text."""
        return iter(())

    def piece(self, piece: Piece) -> Iterator[bytes]:
        """Yield what a piece says, or why its choice ended."""
        text = "".join(said.text for said in piece.said if isinstance(said, SaidText))
        if text or piece.logprobs or piece.reason:
            yield self._event([self.choice(piece.index, text, piece.logprobs, piece.reason)])

    def end(self, finished: FinishedEvent) -> Iterator[bytes]:
        """Yield the counts, where they were asked for, and the end."""
        if self._includes_usage:
            yield data_event({**self.head, "choices": [], **end_fields(finished)})
        yield DONE

    def failure(self, error: Exception) -> Iterator[bytes]:
        """Yield what went wrong, and the end."""
        yield data_event(error_body(error))
        yield DONE

    def choice(self, index: int, text: str, logprobs: Sequence[TokenLogprob], reason: Ending | None) -> dict[str, Any]:
        """Return a choice, or the next piece of it."""
        told = self._logprobs(index, logprobs) if self._tells_logprobs else None
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {
            "tokens": [_token(each) for each in logprobs],
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": [{_token(top): top.logprob for top in reversed(each.top)} for each in logprobs],
            "text_offset": [self._places[index].of_next(each.data) for each in logprobs],
        }

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        body = {**self.head, "choices": choices}
        return data_event({**body, "usage": None} if self._includes_usage else body)


def _token(each: TokenLogprob) -> str:
    # A part of a character has no text of its own.
    return each.data.decode(errors="replace")
