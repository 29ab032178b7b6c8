"""What `/v1/completions` answers, and the routes that turn texts into tokens and back."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.api.answers.answer import Answer
from serving.api.answers.chat import ChatTimings, ChatUsage


class CompletionLogprobs(Answer):
    """One entry in each list for each token; `text_offset` counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Answer):
    """One text that goes on, or the next piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Answer):
    """Texts that go on."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: ChatUsage
    timings: ChatTimings


class CompletionChunk(Answer):
    """One event of a stream; the last event is the word `[DONE]`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice] = Field(max_length=1)
    usage: ChatUsage | None = None
    timings: ChatTimings | None = None


class Tokens(Answer):
    """Tokens, and what a context holds of them; `token_strs` are as the vocabulary writes them, where asked for."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Answer):
    """The text of tokens."""

    prompt: str
