"""The bodies of answers, as the OpenAPI document describes them; the tests hold every real answer to these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bundle.manifest import Task


class Answer(BaseModel):
    """A body, or an object within one."""

    model_config = ConfigDict(extra="forbid")


class Fault(Answer):
    """What went wrong.

    `param` names the field of the request, dotted, or the header; `code` is a word to branch on.
    """

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Answer):
    """The one form of every failure; in a stream, the last event but `[DONE]`."""

    error: Fault


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


class CalledFunction(Answer):
    """A function, and its arguments: the text of a JSON object, which an answer that was cut may leave unfinished."""

    name: str
    arguments: str


class AnsweredCall(Answer):
    """A call of a function; its result is sent back under the id."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class GroundedPart(Answer):
    """A part of `grounding.text` and its boxes: left, top, right, bottom, as shares of the image's width and height.

    Boxes without words have no text, and stand where `start` and `end` say. `polygons` are outlines, x, y, x, y, ...,
    one in each box, where the model said outlines.
    """

    text: str | None
    start: int
    end: int
    boxes: list[tuple[float, float, float, float]] = Field(min_length=1)
    polygons: list[list[float]] = Field(default_factory=list)


class Grounding(Answer):
    """What an answer says without the marks of boxes in its content, and where that lies."""

    text: str
    objects: list[GroundedPart]


class AssistantAnswer(Answer):
    """What the model said and calls; may be sent back as the next turn's history.

    Models that say boxes have `grounding`.
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


class TextUsage(Answer):
    """Counts of the tokens that texts took."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Answer):
    """A vector of unit length: numbers, or the base64 of its little-endian float32 bytes."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class TokenEmbeddings(Answer):
    """A vector of unit length for every token of an input, each as an `Embedding` has its own."""

    object: Literal["embedding"]
    index: int
    embeddings: list[list[float] | str]


class EmbeddingList(Answer):
    """What each input became, in their order."""

    object: Literal["list"]
    model: str
    data: list[Embedding | TokenEmbeddings]
    usage: TextUsage


class Pooled(Answer):
    """A vector, one for each token, or a score [1]: numbers, or the base64 of their float32 bytes, row behind row."""

    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str


class PoolingList(Answer):
    """What each input became, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Pooled]
    usage: TextUsage


class RankedDocument(Answer):
    """A document again: its text, or that it is an image, or both of several parts."""

    text: str | None = None
    type: Literal["image"] | None = None
    content: list[RankedDocument] | None = None


class RankedResult(Answer):
    """How near a document is to the query, between -1 and 1, and its place among those that were sent."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class Ranking(Answer):
    """Documents, the nearest first."""

    id: str
    model: str
    results: list[RankedResult]
    usage: TextUsage


class Score(Answer):
    """How near the two of a pair are, between -1 and 1."""

    index: int
    object: Literal["score"]
    score: float


class ScoreList(Answer):
    """One score per pair, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: TextUsage


class LabelScore(Answer):
    """How well a label fits."""

    label: str
    score: float


class Classification(Answer):
    """An image's labels, the best first."""

    object: Literal["classification"]
    index: int
    labels: list[LabelScore]


class ClassificationList(Answer):
    """One classification per image, in their order."""

    object: Literal["list"]
    model: str
    data: list[Classification]
    usage: TextUsage


class Capabilities(Answer):
    """What a model can be asked for."""

    chat: bool
    completions: bool
    tools: bool
    structured_output: bool
    video: bool
    images: bool
    embeddings: bool
    rerank: bool
    classify: bool


class RequestLimits(Answer):
    """What one request may hold on this server."""

    max_images: int
    max_image_bytes: int
    max_videos: int
    max_frames: int
    max_choices: int
    max_inputs: int
    max_labels: int


class Version(Answer):
    """The server's version."""

    version: str


class VisionDefault(Answer):
    """What is done to images where a request does not say."""

    method: str
    keep: float


class KVDefault(Answer):
    """What is done to a prompt's rows where a request does not say."""

    policy: str
    budget: float


class ModelDescription(Answer):
    """A served model: what it can, how weights and cache are stored, bytes, and how it passed its quality gates.

    `root` is its own name where `id` is an alias; `max_model_len` is vLLM's name of `context_tokens`; `kv_cache` says
    what rows of the cache are stored as; `video_layouts`, `vision_methods` and `kv_policies` are the names that
    `video`, `vision` and `kv` of a request may give, the latter two with any share above 0 to 1.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["pocketvlm"]
    root: str
    parent: None
    max_model_len: int | None
    task: Task
    model_type: str
    schemes: dict[str, str]
    kv_cache: str | None
    weight_bytes: int
    context_tokens: int | None
    capabilities: Capabilities
    limits: RequestLimits
    video_layouts: list[str]
    vision_methods: list[str]
    vision_default: VisionDefault | None
    kv_policies: list[str]
    kv_default: KVDefault | None
    gated: bool | None
    gates: list[dict[str, Any]]
    unmeasured: list[dict[str, Any]]


class ModelList(Answer):
    """All served models."""

    object: Literal["list"]
    data: list[ModelDescription]


class HealthAnswer(Answer):
    """`live` or `ready`, or why not."""

    status: str
    reason: str | None = None


class Prefix(Answer):
    """The beginning of a conversation, kept under a name; `created` is in Unix time.

    `prompt_tokens`: of its messages, with what opens an answer; those of images are part of them. `method` says what is
    kept, `size_bytes` how much, `cache_rows` what a request behind it begins with in each layer, and `replaced_heads`
    how many attention heads a task vector replaces.
    """

    object: Literal["prefix"]
    name: str
    model: str
    created: int
    prompt_tokens: int
    image_tokens: int
    method: Literal["plain", "fused", "task-vectors"]
    cache_rows: int
    size_bytes: int
    replaced_heads: int


class PrefixList(Answer):
    """The prefixes, by name."""

    object: Literal["list"]
    data: list[Prefix]


class DeletedPrefix(Answer):
    """A prefix is forgotten."""

    object: Literal["prefix"]
    name: str
    deleted: Literal[True]


class Unloaded(Answer):
    """A model that is served no more."""

    id: str
    object: Literal["model"]
    unloaded: Literal[True]


class Cleared(Answer):
    """The caches are empty."""

    status: Literal["cleared"]


class Welcome(Answer):
    """Where to go from here."""

    name: Literal["PocketVLM"]
    version: str
    models: str
    docs: str
    openapi: str
