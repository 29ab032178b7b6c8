"""The bodies of answers of `/v1/responses`, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import RootModel

from serving.api.answers.answer import Answer
from serving.api.answers.chat import TokenLogprobs

_Status = Literal["in_progress", "completed", "incomplete"]


class AnsweredText(Answer):
    """What the model says between two calls."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprobs]


class OutputMessage(Answer):
    """A message; empty where it has only begun."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: _Status
    content: list[AnsweredText]


class OutputCall(Answer):
    """A call of a function; its result is sent back under `call_id`."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: _Status


OutputItem = OutputMessage | OutputCall


class InputDetails(Answer):
    """Part of the input's tokens: those that were not read again."""

    cached_tokens: int
    cache_write_tokens: Literal[0]


class OutputDetails(Answer):
    """Part of the output's tokens."""

    reasoning_tokens: Literal[0]


class ResponseUsage(Answer):
    """Counts of tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Answer):
    """Why a response was cut."""

    reason: Literal["max_output_tokens"]


class ResponseAnswer(Answer):
    """A response; the fields of the request that clients read again come back with it."""

    id: str
    object: Literal["response"]
    created_at: int
    status: _Status
    error: None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    previous_response_id: None
    store: Literal[False]
    background: Literal[False]
    truncation: Literal["disabled"]
    reasoning: dict[str, None]
    service_tier: Literal["default"]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    text: dict[str, Any]
    parallel_tool_calls: bool
    metadata: dict[str, str]
    top_logprobs: int
    instructions: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None


class _Event(Answer):
    sequence_number: int


class LifeEvent(_Event):
    """A response has begun, or ended."""

    type: Literal["response.created", "response.in_progress", "response.completed", "response.incomplete"]
    response: ResponseAnswer


class ItemEvent(_Event):
    """An item has begun, or ended."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _OfItem(_Event):
    item_id: str
    output_index: int


class PartEvent(_OfItem):
    """A message's text has begun, or ended."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: Literal[0]
    part: AnsweredText


class TextDeltaEvent(_OfItem):
    """The next piece of a text."""

    type: Literal["response.output_text.delta"]
    content_index: Literal[0]
    delta: str
    logprobs: list[TokenLogprobs]


class TextDoneEvent(_OfItem):
    """A whole text."""

    type: Literal["response.output_text.done"]
    content_index: Literal[0]
    text: str
    logprobs: list[TokenLogprobs]


class ArgumentsDeltaEvent(_OfItem):
    """The next piece of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDoneEvent(_OfItem):
    """A call's whole arguments."""

    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class ErrorEvent(_Event):
    """What went wrong; the last event."""

    type: Literal["error"]
    code: str
    message: str
    param: str | None


class ResponseEvent(
    RootModel[
        LifeEvent
        | ItemEvent
        | PartEvent
        | TextDeltaEvent
        | TextDoneEvent
        | ArgumentsDeltaEvent
        | ArgumentsDoneEvent
        | ErrorEvent
    ]
):
    """One event of a stream, named by its `type`."""
