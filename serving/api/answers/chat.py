"""What `/v1/chat/completions` answers, whole and streamed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from serving.api.answers.answer import Answer


class PromptTokensDetails(Answer):
    """Part of the prompt's tokens.

    Those that were not read again; those of images and frames before `vision` left any out; of these, the ones that
    were not encoded again; what the model read in their place. And the rows that the prompt took in the cache, before a
    KV policy chose among them and after.
    """

    cached_tokens: int
    image_tokens: int
    cached_image_tokens: int
    cache_rows_before: int
    cache_rows_after: int
    kept_image_tokens: int


class ChatUsage(Answer):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatTimings(Answer):
    """Where the time went, in seconds."""

    queue_s: float
    preprocess_s: float
    vision_s: float
    first_token_s: float
    total_s: float
    prefill_s: float
    decode_s: float


class AnsweredFunction(Answer):
    """A function, and its arguments: the text of a JSON object, which an answer that was cut may leave unfinished."""

    name: str
    arguments: str


class AnsweredCall(Answer):
    """A call of a function; its result is sent back under the id."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class Point(Answer):
    """A point as shares of width and height: the `number` of a thing, `at` the image of that number, or the second."""

    number: int
    at: float
    x: float
    y: float


class GroundedPart(Answer):
    """A part of `grounding.text` and its boxes: left, top, right, bottom, as shares of the image's width and height.

    Boxes without words have no text, and stand where `start` and `end` say. `polygons` are outlines, x, y, x, y, ...,
    one in each box, where the model said outlines. Models that say points have `points`, and no boxes.
    """

    text: str | None
    start: int
    end: int
    boxes: list[tuple[float, float, float, float]]
    polygons: list[list[float]] = Field(default_factory=list)
    points: list[Point] = Field(default_factory=list)


class Grounding(Answer):
    """What an answer says without the marks in its content, and where that lies; `fields` of a document, as JSON."""

    text: str
    objects: list[GroundedPart]
    fields: dict[str, Any] | list[Any] | None = None


class AssistantAnswer(Answer):
    """What the model said and calls; may be sent back as the next turn's history.

    Models that say boxes or fields of documents have `grounding`.
    """

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnsweredCall] = Field(default_factory=list)
    grounding: Grounding | None = None


class TokenChance(Answer):
    """A token, and the natural logarithm of its chance by the model itself, before anything that a request asks for.

    `bytes` may be a part of a character, which `token` then shows as U+FFFD.
    """

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TokenChance):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[TokenChance]


class ChatLogprobs(Answer):
    """One entry for each token; a token that ended the answer has none."""

    content: list[TokenLogprobs]
    refusal: None


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: AssistantAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Answer):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice] = Field(min_length=1)
    usage: ChatUsage
    timings: ChatTimings


class FunctionDelta(Answer):
    """A function's name, once, or the next piece of its arguments."""

    name: str | None = None
    arguments: str


class CallDelta(Answer):
    """A call begins, with id and name, or goes on."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(Answer):
    """What an event adds to the answer: its role first, then its text, and its calls; boxes with the last."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallDelta] = Field(default_factory=list)
    grounding: Grounding | None = None


class ChunkChoice(Answer):
    """The next piece of one answer; its last has a reason and no text."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionChunk(Answer):
    """One event of a stream; the last event is the word `[DONE]`.

    With `stream_options.include_usage`, an event without choices follows the answer and has the counts.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice] = Field(max_length=1)
    usage: ChatUsage | None = None
    timings: ChatTimings | None = None
