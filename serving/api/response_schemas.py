"""The body of `POST /v1/responses`, and what it asks of the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from bundle.errors import ParameterError
from serving.api.conversation import check_counts
from serving.api.fields import (
    Name,
    Off,
    OffOrEmptyList,
    OffOrEmptyObject,
    OffOrFalse,
    Strict,
    Text,
    Unbuilt,
    at_most,
)
from serving.api.history import OpenCalls, call_of
from serving.api.images import image_part
from serving.api.sampling_fields import MOST_TOP_LOGPROBS
from serving.api.service import Service, check_count
from serving.api.structured import JsonObjectFormat, JsonSchema, TextFormat
from serving.api.tools import MOST_TOOLS, CalledFunction, Choice, Offer, ToolCallField, ToolName, checked, tool_of
from serving.protocol import ImagePart, Message, SamplingParams, Structure, TextPart

LOGPROBS = "message.output_text.logprobs"
_NO_REASONING = "reasoning.encrypted_content"
"""Clients ask for it always; no model reasons here, so there is none."""
_MOST_INCLUDED = 16
_CallId = Annotated[Text, Field(min_length=1, max_length=256)]
_Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Strict):
    """A piece of text."""

    type: Literal["input_text"]
    text: Text


class InputImage(Strict):
    """An image: a data URL. `detail` changes nothing: the model's own resolution is used."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None
    file_id: Off = None


class OutputText(Strict):
    """A piece of what the model said, as an answer tells it."""

    type: Literal["output_text"]
    text: Text
    annotations: OffOrEmptyList = None
    logprobs: Any = None


_AtMostParts = at_most("max_parts", "parts")
InputContent = Annotated[InputText | InputImage | OutputText, Field(discriminator="type")]


class MessageItem(Strict):
    """A message; as `role` says, `system` and `developer` are one. Images are the user's alone."""

    type: Literal["message"]
    role: Literal["user", "system", "developer", "assistant"]
    content: Text | Annotated[list[InputContent], Field(fail_fast=True), _AtMostParts]
    id: Name | None = None
    status: _Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Strict):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: _CallId
    name: ToolName
    arguments: Text
    id: Name | None = None
    status: _Status | None = None


class ResultItem(Strict):
    """What a call gave: text alone."""

    type: Literal["function_call_output"]
    call_id: _CallId
    output: Text | Annotated[list[InputText], Field(fail_fast=True), _AtMostParts]
    id: Name | None = None
    status: _Status | None = None


def _with_type(value: Any) -> Any:
    """Take a message without its type, as clients write it."""
    return {"type": "message", **value} if isinstance(value, dict) and "role" in value else value


Item = Annotated[
    Annotated[MessageItem | CallItem | ResultItem, Field(discriminator="type")], BeforeValidator(_with_type)
]
Items = Annotated[list[Item], Field(min_length=1, fail_fast=True), at_most("max_messages", "items")]


class ResponseTool(Strict):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: Text | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class ResponseToolChoice(Strict):
    """The function that the model has to call."""

    type: Literal["function"]
    name: ToolName


class SchemaFormat(Strict):
    """A JSON value of a schema; it is always followed, `strict` or not."""

    type: Literal["json_schema"]
    name: Annotated[Text, Field(max_length=64)]
    description: Text | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """What the answer shall be."""

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Annotated[Any, Unbuilt(("medium",))] = None


def _refuse_stored(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError("not_stored", "no response is stored here; send the whole conversation in input")
    return value


NotStored = Annotated[None, BeforeValidator(_refuse_stored)]


class ResponsesBody(Strict):
    """The body of `POST /v1/responses`. Nothing is stored: `input` holds the whole conversation.

    What it leaves open is the model's own default. `user`, `safety_identifier`, `metadata` and `prompt_cache_key` tell
    of the caller, and change no answer. `model` may be left out where only one model chats.
    """

    model: Name | None = None
    input: Text | Items
    instructions: Text | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stream: bool | None = None
    tools: Annotated[list[ResponseTool], Field(fail_fast=True), at_most(MOST_TOOLS, "tools")] | None = None
    tool_choice: Choice | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    include: (
        Annotated[
            list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]],
            Field(fail_fast=True),
            at_most(_MOST_INCLUDED, "entries"),
        ]
        | None
    ) = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    metadata: Annotated[dict[Text, Text], at_most(16, "entries")] | None = None

    store: Annotated[Any, Unbuilt((False,))] = None
    previous_response_id: NotStored = None
    conversation: NotStored = None
    background: OffOrFalse = None
    stream_options: Annotated[Any, Unbuilt(({}, {"include_obfuscation": False}))] = None
    truncation: Annotated[Any, Unbuilt(("disabled",))] = None
    reasoning: Annotated[Any, Unbuilt(({}, {"effort": "none"}, {"effort": None}))] = None
    service_tier: Annotated[Any, Unbuilt(("auto", "default"))] = None
    max_tool_calls: Off = None
    prompt: Off = None
    prompt_cache_retention: Off = None
    context_management: OffOrEmptyList = None
    moderation: OffOrEmptyObject = None

    @property
    def tells_logprobs(self) -> bool:
        """True where the answer tells the chances of its tokens."""
        return LOGPROBS in (self.include or ())

    def sampling(self) -> SamplingParams:
        """Return how tokens are chosen; what the request leaves open takes the engine's defaults.

        Raises:
            ParameterError: `top_logprobs` without asking for logprobs.
        """
        if self.top_logprobs and not self.tells_logprobs:
            raise ParameterError(f"top_logprobs is only allowed with include: [{LOGPROBS!r}]", "top_logprobs")
        return SamplingParams(
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_logprobs=(self.top_logprobs or 0) if self.tells_logprobs else None,
            structure=self._structure(),
        )

    def _structure(self) -> Structure | None:
        wanted = None if self.text is None else self.text.format
        if isinstance(wanted, SchemaFormat):
            return Structure("json", json.dumps(wanted.schema_), "text.format")
        return Structure("json", '{"type": "object"}', "text.format") if isinstance(wanted, JsonObjectFormat) else None

    def offer(self) -> Offer:
        """Return the functions that the model may or has to call.

        Raises:
            ParameterError: Two have one name, or what must be called is not offered.
        """
        tools = tuple(
            tool_of(
                tool.name,
                tool.description,
                tool.parameters,
                is_strict=tool.strict,
                param=f"tools.{index}.parameters",
            )
            for index, tool in enumerate(self.tools or ())
        )
        is_parallel = self.parallel_tool_calls is not False
        if isinstance(self.tool_choice, ResponseToolChoice):
            return checked(Offer(tools, "required", self.tool_choice.name, is_parallel))
        return checked(Offer(tools, self.tool_choice or "auto", None, is_parallel))


def messages_of(service: Service, body: ResponsesBody) -> tuple[Message, ...]:
    """Return a conversation as the engine takes it, its images decoded from base64.

    Raises:
        RequestError: A limit is passed, an image is none, or a call and its result do not go together.
    """
    messages = [Message("system", (TextPart(body.instructions),))] if body.instructions else []
    if isinstance(body.input, str):
        return (*messages, Message("user", (TextPart(body.input),)))
    contents = [item.content for item in body.input if isinstance(item, MessageItem)]
    num_parts = sum(len(content) for content in contents if isinstance(content, list))
    check_count(num_parts, service.settings.max_parts, "input", "parts")
    open_calls = OpenCalls()
    for index, item in enumerate(body.input):
        _add(service, messages, item, open_calls, f"input.{index}")
    open_calls.check_none("input")
    check_counts(service, [part for message in messages for part in message.parts])
    return tuple(messages)


def _add(service: Service, messages: list[Message], item: Any, open_calls: OpenCalls, param: str) -> None:
    """Add an item to a conversation; what the model says and calls at once becomes one message."""
    last_is_model = bool(messages) and messages[-1].role == "assistant"
    if isinstance(item, ResultItem):
        open_calls.close(item.call_id, f"{param}.call_id")
        texts = item.output if isinstance(item.output, str) else "".join(part.text for part in item.output)
        messages.append(Message("tool", (TextPart(texts),)))
    elif isinstance(item, CallItem):
        function = CalledFunction.model_construct(name=item.name, arguments=item.arguments)
        field = ToolCallField.model_construct(id=item.call_id, type="function", function=function)
        call = call_of(field, param)
        open_calls.add((call,), param)
        before = messages.pop() if last_is_model else Message("assistant", ())
        messages.append(replace(before, calls=(*before.calls, call)))
    elif item.role == "assistant" and last_is_model and messages[-1].calls:
        before = messages.pop()
        messages.append(replace(before, parts=(*before.parts, *_parts(service, item, param))))
    else:
        open_calls.check_none(param)
        role: Literal["user", "system", "assistant"] = "system" if item.role == "developer" else item.role
        messages.append(Message(role, _parts(service, item, param)))


def _parts(service: Service, item: MessageItem, param: str) -> tuple[TextPart | ImagePart, ...]:
    if isinstance(item.content, str):
        return (TextPart(item.content),)
    if item.role != "user" and any(isinstance(part, InputImage) for part in item.content):
        raise ParameterError(f"{param}: a message of the role {item.role} holds text alone", f"{param}.content")
    return tuple(_all(service, item.content, param))


def _all(service: Service, content: Sequence[Any], param: str) -> list[TextPart | ImagePart]:
    parts = list[TextPart | ImagePart]()
    for place, part in enumerate(content):
        if isinstance(part, InputImage):
            where = f"{param}.content.{place}.image_url"
            parts.append(image_part(part.image_url, where, service.settings.max_image_bytes))
        else:
            parts.append(TextPart(part.text))
    return parts
