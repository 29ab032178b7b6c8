"""The bodies of answers in Anthropic's API, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import RootModel

from serving.api.answers.answer import Answer


class MessageText(Answer):
    """A text that the model says."""

    type: Literal["text"]
    text: str


class MessageUse(Answer):
    """A call of a function; of one that was cut, the arguments that are there."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(Answer):
    """Counts of tokens; `input_tokens` are those that were not read for an earlier request."""

    input_tokens: int
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int
    output_tokens: int


class MessageEnding(Answer):
    """Why an answer ended."""

    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None


class MessageAnswer(MessageEnding):
    """A whole answer as Anthropic writes it."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[MessageText | MessageUse]
    usage: MessageUsage


class MessageStart(Answer):
    """The empty answer; its tokens are counted at the end."""

    type: Literal["message_start"]
    message: MessageAnswer


class BlockStart(Answer):
    """A text or a call begins."""

    type: Literal["content_block_start"]
    index: int
    content_block: MessageText | MessageUse


class TextDelta(Answer):
    """The next piece of a text."""

    type: Literal["text_delta"]
    text: str


class InputDelta(Answer):
    """The next piece of the JSON of a call's arguments."""

    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(Answer):
    """A text or a call goes on."""

    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | InputDelta


class BlockStop(Answer):
    """A text or a call has ended."""

    type: Literal["content_block_stop"]
    index: int


class MessageDelta(Answer):
    """Why the answer ended, and what it took."""

    type: Literal["message_delta"]
    delta: MessageEnding
    usage: MessageUsage


class MessageStop(Answer):
    """The answer has ended."""

    type: Literal["message_stop"]


class MessageFault(Answer):
    """What went wrong."""

    type: str
    message: str


class MessageErrorAnswer(Answer):
    """The one form of every failure under `/v1/messages`; in a stream, the last event."""

    type: Literal["error"]
    error: MessageFault


class MessageEvent(
    RootModel[MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | MessageErrorAnswer]
):
    """One event of a stream, named by its `type`."""


class CountedTokens(Answer):
    """The tokens of a conversation."""

    input_tokens: int
