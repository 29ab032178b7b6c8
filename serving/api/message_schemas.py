"""Bodies of Anthropic's API, and what they ask of the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from bundle.errors import ParameterError
from serving.api.conversation import check_counts
from serving.api.fields import Name, Off, OffOrEmptyList, Strict, Text, Unbuilt, at_most
from serving.api.history import OpenCalls
from serving.api.images import decoded, image_part
from serving.api.sampling_fields import Stop
from serving.api.service import Service, check_count
from serving.api.structured import JsonSchema
from serving.api.tools import MOST_TOOLS, Offer, ToolName, checked, json_text, tool_of
from serving.protocol import ImagePart, Message, SamplingParams, Structure, TextPart, ToolCall

_MOST_STOPS = 4
_CallId = Annotated[Text, Field(min_length=1, max_length=256)]


class CacheControl(Strict):
    """Asks that a beginning is kept for later requests: it always is."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Block(Strict):
    cache_control: CacheControl | None = None


class TextBlock(_Block):
    """A piece of text."""

    type: Literal["text"]
    text: Text
    citations: OffOrEmptyList = None


class Base64Source(Strict):
    """An image's bytes."""

    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(Strict):
    """Where an image is: a data URL, or one of a host that images are fetched from."""

    type: Literal["url"]
    url: str


class ImageBlock(_Block):
    """An image."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]


class ToolUseBlock(_Block):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: _CallId
    name: ToolName
    input: dict[str, Any]
    caller: Annotated[Any, Unbuilt(({"type": "direct"},))] = None


_AtMostParts = at_most("max_parts", "blocks")
TextBlocks = Annotated[list[TextBlock], Field(fail_fast=True), _AtMostParts]


class ToolResultBlock(_Block):
    """What a call gave: text alone. `is_error` is told to the model in words."""

    type: Literal["tool_result"]
    tool_use_id: _CallId
    content: Text | TextBlocks | None = None
    is_error: bool | None = None


UserBlock = Annotated[TextBlock | ImageBlock | ToolResultBlock, Field(discriminator="type")]
AssistantBlock = Annotated[TextBlock | ToolUseBlock, Field(discriminator="type")]


class UserTurn(Strict):
    """What the user says and shows, behind the results of the calls before."""

    role: Literal["user"]
    content: Text | Annotated[list[UserBlock], Field(min_length=1, fail_fast=True), _AtMostParts]


class AssistantTurn(Strict):
    """What the model said and called."""

    role: Literal["assistant"]
    content: Text | Annotated[list[AssistantBlock], Field(min_length=1, fail_fast=True), _AtMostParts]


Turns = Annotated[
    list[Annotated[UserTurn | AssistantTurn, Field(discriminator="role")]],
    Field(min_length=1, fail_fast=True),
    at_most("max_messages", "messages"),
]


class CustomTool(_Block):
    """A function that the model may call."""

    type: Annotated[Any, Unbuilt(("custom",))] = None
    name: ToolName
    description: Text | None = None
    input_schema: JsonSchema
    strict: bool | None = None
    input_examples: OffOrEmptyList = None


class ToolChoiceAny(Strict):
    """`auto`: the model may call; `any`: it has to; `none`: it is told of no function."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class ToolChoiceTool(Strict):
    """The function that the model has to call."""

    type: Literal["tool"]
    name: ToolName
    disable_parallel_tool_use: bool | None = None


class NoThinking(Strict):
    """No model thinks aloud here."""

    type: Literal["disabled"]


class JsonOutput(Strict):
    """The answer is a JSON value of a schema."""

    type: Literal["json_schema"]
    schema_: JsonSchema = Field(alias="schema")


class OutputConfig(Strict):
    """What the answer shall be."""

    format: JsonOutput | None = None
    effort: Off = None


class Metadata(Strict):
    """Tells of the caller, and changes no answer."""

    user_id: Text | None = None


class CountBody(Strict):
    """The body of `POST /v1/messages/count_tokens`. `model` may be left out where only one model chats."""

    model: Name | None = None
    messages: Turns
    system: Text | TextBlocks | None = None
    tools: Annotated[list[CustomTool], Field(fail_fast=True), at_most(MOST_TOOLS, "tools")] | None = None
    tool_choice: Annotated[ToolChoiceAny | ToolChoiceTool, Field(discriminator="type")] | None = None
    thinking: NoThinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    mcp_servers: OffOrEmptyList = None
    context_management: Off = None
    container: Off = None

    def offer(self) -> Offer:
        """Return the functions that the model may or has to call.

        Raises:
            ParameterError: Two have one name, or what must be called is not offered.
        """
        tools = tuple(
            tool_of(
                tool.name,
                tool.description,
                tool.input_schema,
                is_strict=tool.strict,
                param=f"tools.{index}.input_schema",
            )
            for index, tool in enumerate(self.tools or ())
        )
        given = self.tool_choice
        is_parallel = given is None or not given.disable_parallel_tool_use
        if isinstance(given, ToolChoiceTool):
            return checked(Offer(tools, "required", given.name, is_parallel))
        kinds: dict[str, Literal["none", "auto", "required"]] = {"auto": "auto", "any": "required", "none": "none"}
        return checked(Offer(tools, kinds["auto" if given is None else given.type], None, is_parallel))


class MessagesBody(CountBody):
    """The body of `POST /v1/messages`.

    What it leaves open is the model's own default; `metadata` tells of the caller, and changes no answer.
    """

    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Field(fail_fast=True), at_most(_MOST_STOPS, "stop sequences")] | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    metadata: Metadata | None = None
    service_tier: Annotated[Any, Unbuilt(("auto", "standard_only"))] = None
    inference_geo: Off = None
    speed: Annotated[Any, Unbuilt(("standard",))] = None

    def sampling(self) -> SamplingParams:
        """Return how tokens are chosen; what the request leaves open takes the engine's defaults."""
        wanted = None if self.output_config is None else self.output_config.format
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=tuple(self.stop_sequences or ()),
            structure=None if wanted is None else Structure("json", json.dumps(wanted.schema_), "output_config"),
        )


def messages_of(service: Service, body: CountBody) -> tuple[Message, ...]:
    """Return a conversation as the engine takes it, its images decoded from base64.

    Raises:
        RequestError: A limit is passed, an image is none, a call and its result do not go together, or the last turn
            is the model's.
    """
    num_blocks = sum(len(turn.content) for turn in body.messages if isinstance(turn.content, list))
    check_count(num_blocks, service.settings.max_parts, "messages", "blocks")
    last = len(body.messages) - 1
    if isinstance(body.messages[last], AssistantTurn):
        raise ParameterError(
            f"messages.{last}: an answer that is begun for the model is not gone on with; end with a user's message",
            f"messages.{last}.role",
        )
    messages, open_calls = _system(body.system), OpenCalls()
    for index, turn in enumerate(body.messages):
        param = f"messages.{index}.content"
        if isinstance(turn, UserTurn):
            messages += _user_messages(service, turn, open_calls, param)
        else:
            calls = _calls(turn, param)
            open_calls.add(calls, param)
            messages.append(Message("assistant", _texts(turn.content), calls))
    check_counts(service, [part for message in messages for part in message.parts])
    return tuple(messages)


def _system(given: str | Sequence[TextBlock] | None) -> list[Message]:
    return [Message("system", _texts(given))] if given else []


def _texts(content: str | Sequence[Any]) -> tuple[TextPart, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(TextPart(block.text) for block in content if isinstance(block, TextBlock))


def _calls(turn: AssistantTurn, param: str) -> tuple[ToolCall, ...]:
    blocks = () if isinstance(turn.content, str) else turn.content
    used = [(place, block) for place, block in enumerate(blocks) if isinstance(block, ToolUseBlock)]
    return tuple(ToolCall(use.id, use.name, json_text(use.input, f"{param}.{place}.input")) for place, use in used)


def _user_messages(service: Service, turn: UserTurn, open_calls: OpenCalls, param: str) -> list[Message]:
    """Return the results that a turn begins with, and what the user says."""
    if isinstance(turn.content, str):
        open_calls.check_none(param)
        return [Message("user", (TextPart(turn.content),))]
    messages, parts = list[Message](), list[TextPart | ImagePart]()
    for place, block in enumerate(turn.content):
        where = f"{param}.{place}"
        if isinstance(block, ToolResultBlock):
            if parts:
                raise ParameterError(f"{where}: results come before what else a message holds", where)
            open_calls.close(block.tool_use_id, f"{where}.tool_use_id")
            messages.append(Message("tool", (TextPart(_result(block)),)))
        else:
            parts.append(TextPart(block.text) if isinstance(block, TextBlock) else _image(service, block, where))
    open_calls.check_none(param)
    return [*messages, Message("user", tuple(parts))] if parts else messages


def _result(block: ToolResultBlock) -> str:
    content = block.content or ""
    text = content if isinstance(content, str) else "".join(each.text for each in content)
    return f"Error: {text}" if block.is_error else text


def _image(service: Service, block: ImageBlock, param: str) -> ImagePart:
    source = block.source
    if isinstance(source, UrlSource):
        return image_part(source.url, f"{param}.source.url", service.settings.max_image_bytes)
    return ImagePart(decoded(source.data, f"{param}.source.data", service.settings.max_image_bytes))
