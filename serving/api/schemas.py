"""Request bodies. A field that is not here is refused; types are strict: "1" is no number.

A field whose value changes nothing is taken: null, empty, the default, or what common clients always send. Lists are
counted before their items are looked at, and nothing is validated beyond the first fault of a list.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bundle.errors import ParameterError
from bundle.zero_shot import SLOT, TEMPLATES, spelled_out
from quant.kv.table import POLICIES
from serving.api.contents import (
    Contents,
    ImageContent,
    JoinedContent,
    MediaOptions,
    Part,
    Parts,
    ProcessorOptions,
    RegionContent,
    TextContent,
    Texts,
    VideoOptions,
    VisionOptions,
)
from serving.api.fields import (
    JsonObject,
    Name,
    Off,
    OffOrEmptyList,
    OffOrEmptyObject,
    OffOrFalse,
    OffOrOne,
    Text,
    Unbuilt,
)
from serving.api.fields import Strict as _Strict
from serving.api.fields import at_most as _at_most
from serving.api.sampling_fields import MOST_TOP_LOGPROBS, SamplingFields
from serving.api.tools import Offer, ToolCalls, ToolChoice, Tools, offer_of
from serving.api.validation import shown
from serving.protocol import M3ID, VCD, Contrast, KVCompression, SamplingParams, VisionReduction


class _Message(_Strict):
    """What every message may carry. `name` tells the model nothing: templates have no place for it."""

    name: Name | None = None


class SystemMessage(_Message):
    """What the operator tells the model: text alone. `developer` is OpenAI's newer word for it."""

    role: Literal["system", "developer"]
    content: Text | Texts


class AssistantMessage(_Message):
    """What the model said and called before: text and calls, as this server and others write their answers.

    `grounding` tells the model nothing: its marks stand in the content.
    """

    role: Literal["assistant"]
    content: Text | Texts | None = None
    refusal: Off = None
    tool_calls: ToolCalls | None = None
    function_call: Off = None
    audio: Off = None
    annotations: OffOrEmptyList = None
    reasoning: Off = None
    reasoning_content: Off = None
    parsed: Off = None
    grounding: JsonObject | None = None


class UserMessage(_Message):
    """What the user says and shows."""

    role: Literal["user"]
    content: Text | Contents


class ToolMessage(_Message):
    """What a call of the message before gave: text alone."""

    role: Literal["tool"]
    tool_call_id: Annotated[Text, Field(min_length=1, max_length=256)]
    content: Text | Texts


ChatMessage = Annotated[SystemMessage | AssistantMessage | UserMessage | ToolMessage, Field(discriminator="role")]


Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True), _at_most("max_messages", "messages")]


class StreamOptions(_Strict):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: OffOrFalse = None
    continuous_usage_stats: OffOrFalse = None


def _check_policy(name: str) -> str:
    if name not in POLICIES:
        raise PydanticCustomError("kv_policy", "it must be one of {known}", {"known": ", ".join(POLICIES)})
    return name


class KVOptions(_Strict):
    """Which rows of the prompt stay in the cache once it was read, and what share of them (docs/compression.md)."""

    policy: Annotated[Name, AfterValidator(_check_policy)]
    budget: float = Field(gt=0, le=1)


class VCDOptions(_Strict):
    """Scores behind images under noise are subtracted (docs/sampling.md); `alpha` 0 changes nothing."""

    method: Literal["vcd"]
    alpha: float = Field(default=1.0, ge=0, le=10)
    beta: float = Field(default=0.1, ge=0, le=1)
    noise_step: int = Field(default=500, ge=0, lt=1000)

    def contrast(self) -> Contrast:
        """Return it as the engine takes it."""
        return VCD(self.alpha, self.beta, self.noise_step)


class M3IDOptions(_Strict):
    """Scores without images are subtracted, more with each token; `decay` 0, or `confidence` 0, changes nothing."""

    method: Literal["m3id"]
    decay: float = Field(default=0.02, ge=0, le=1)
    confidence: float = Field(default=0.3, ge=0, le=1)

    def contrast(self) -> Contrast:
        """Return it as the engine takes it."""
        return M3ID(self.decay, self.confidence)


class ChatRequest(SamplingFields):
    """The body of `POST /v1/chat/completions`.

    What it leaves open is the model's own default (`generation.json`); a model without any takes the likeliest token.
    `model` may be left out where only one model chats. `user`, `safety_identifier`, `metadata` and `prompt_cache_key`
    tell of the caller, and change no answer.
    """

    model: Name | None = None
    messages: Messages
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    contrast: Annotated[VCDOptions | M3IDOptions, Field(discriminator="method")] | None = None
    kv: KVOptions | None = None
    prefix: Name | None = None
    video: VideoOptions | None = None
    vision: VisionOptions | None = None
    media_io_kwargs: MediaOptions | None = None
    mm_processor_kwargs: ProcessorOptions | None = None

    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    metadata: Annotated[dict[Text, Text], _at_most(16, "entries")] | None = None

    best_of: OffOrOne = None
    length_penalty: OffOrOne = None
    functions: OffOrEmptyList = None
    function_call: Annotated[Any, Unbuilt(("none", "auto"))] = None
    modalities: Annotated[Any, Unbuilt((["text"],))] = None
    audio: Off = None
    prediction: Off = None
    web_search_options: Off = None
    reasoning_effort: Annotated[Any, Unbuilt(("none",))] = None
    verbosity: Annotated[Any, Unbuilt(("medium",))] = None
    service_tier: Annotated[Any, Unbuilt(("auto", "default"))] = None
    store: OffOrFalse = None
    prompt_cache_retention: Off = None
    chat_template_kwargs: OffOrEmptyObject = None
    echo: OffOrFalse = None
    use_beam_search: OffOrFalse = None
    skip_special_tokens: Annotated[Any, Unbuilt((True,))] = None

    @model_validator(mode="after")
    def _check_pairs(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options is only allowed with stream: true", "stream_options")
        if None not in (both := {self.max_tokens, self.max_completion_tokens}) and len(both) > 1:
            raise ParameterError("max_tokens and max_completion_tokens differ; send one of them", "max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise ParameterError("top_logprobs is only allowed with logprobs: true", "top_logprobs")
        return self

    @property
    def compression(self) -> KVCompression | None:
        """What the request says of its rows in the cache; None leaves it to the server."""
        return None if self.kv is None else KVCompression(self.kv.policy, self.kv.budget)

    @property
    def includes_usage(self) -> bool:
        """True where the stream shall end with the token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self) -> SamplingParams:
        """Return how tokens are chosen; what the request leaves open takes the engine's defaults."""
        max_tokens = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        sampling = self.sampling_of(max_tokens, (self.top_logprobs or 0) if self.logprobs else None)
        return sampling if self.contrast is None else replace(sampling, contrast=self.contrast.contrast())

    def offer(self) -> Offer:
        """Return the functions that the model may or has to call."""
        return offer_of(self.tools, self.tool_choice, is_parallel=self.parallel_tool_calls is not False)

    @property
    def reduction(self) -> VisionReduction | None:
        """How images are reduced, where the request says so."""
        return None if self.vision is None else VisionReduction(self.vision.method, self.vision.keep)


class PrefixRequest(_Strict):
    """The body of `POST /v1/prefixes`: the beginning of conversations that later requests name.

    `method`: "plain" keeps the messages; "fused" keeps the rows that their text left in the cache, once it had read the
    images, and the images are never read again; "task-vectors" keeps what demonstrations, pairs of user and assistant,
    left in a few attention heads, and takes no room in a prompt (docs/compression.md).
    """

    name: Name
    model: Name | None = None
    method: Literal["plain", "fused", "task-vectors"] = "plain"
    vision: VisionOptions | None = None
    messages: Messages

    @model_validator(mode="after")
    def _check_vision(self) -> PrefixRequest:
        if self.method != "fused" and self.vision is not None:
            raise ParameterError(
                "vision says how the images of a fused prefix are reduced; behind a plain one every request says it, "
                "and demonstrations of a task vector are read whole",
                "vision",
            )
        return self


def _one_of_ids(value: Any) -> Any:
    """Return a bare list of ids, which is one text, as a list of it alone."""
    return [value] if isinstance(value, list) and value and all(type(each) is int for each in value) else value


def _check_not_zero(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("no_tokens", "a text is cut to 1 token at least; -1: to as many as the model reads")
    return value


NonEmptyText = Annotated[Text, Field(min_length=1)]
TokenIds = Annotated[
    list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True), _at_most("max_text_characters", "tokens")
]
EmbeddingInput = NonEmptyText | Part | JoinedContent | TokenIds
_AtMostInputs = _at_most("max_inputs", "inputs")
_Inputs = Annotated[list[EmbeddingInput], Field(min_length=1, fail_fast=True), _AtMostInputs]
MostTokens = Annotated[int, Field(ge=-1), AfterValidator(_check_not_zero)]


class EmbeddingMessage(_Strict):
    """One input written as a message, as vLLM takes images; several parts are one input."""

    role: Literal["user"]
    content: NonEmptyText | Parts


EmbeddedContent = str | TextContent | ImageContent | JoinedContent | list[int]


def _alone_or_joined(content: str | list[TextContent | RegionContent]) -> EmbeddedContent:
    """Return a message's text, its only part, or its parts as one input."""
    if isinstance(content, str):
        return content
    return content[0] if len(content) == 1 else JoinedContent.model_construct(content=content)


class EmbeddingRequest(_Strict):
    """The body of `POST /v1/embeddings`: `input`, or `messages` that each are one input.

    An input is a text, an image, or both where the model reads them together (`content`, or a message of several
    parts).
    An input may be a text's token ids, the model's own. `dimensions` may be the model's own size, or one to which its
    vectors may be cut. A `box` of an image is embedded by itself where the model has vectors of regions. Texts that
    are too long are refused, or cut to `truncate_prompt_tokens` tokens (-1: as many as the model reads). `input_type`
    says what the inputs are to what they are compared with, and `instruction` what the model is told before each, where
    it was made for that. `task` chooses one of a model's adapters, those that `/v1/models` lists; ".query" or
    ".passage" behind it says what `input_type` does, as Jina's clients write it. `return_multivector` asks for a vector
    of each token. `user` tells of the caller, and changes no answer.
    """

    model: Name | None = None
    input: Annotated[NonEmptyText | _Inputs | None, BeforeValidator(_one_of_ids)] = None
    messages: Annotated[list[EmbeddingMessage], Field(min_length=1, fail_fast=True), _AtMostInputs] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    user: Text | None = None
    truncate_prompt_tokens: MostTokens | None = None
    input_type: Literal["query", "document"] | None = None
    instruction: NonEmptyText | None = None
    task: Name | None = None
    return_multivector: bool | None = None

    @model_validator(mode="after")
    def _check_one_source(self) -> EmbeddingRequest:
        if (self.input is None) == (self.messages is None):
            raise ParameterError("send either input or messages, and not both", "input")
        return self

    def contents(self) -> list[EmbeddedContent]:
        """Return the inputs in their order."""
        if self.messages is not None:
            return [_alone_or_joined(message.content) for message in self.messages]
        return [self.input] if isinstance(self.input, str) else list(self.input or ())


_MOST_TEMPLATES = 100
_MOST_LABEL_TEXTS = 10_000
"""Labels times templates: seconds of a small text encoder."""


class ClassifyBody(_Strict):
    """The body of `POST /v1/classify`.

    In `prompt_template`, "{}" stands for a label. It may be the name of a published set ("clip-80"), or a list: the
    mean of a label's vectors counts.
    """

    model: Name | None = None
    images: Annotated[list[RegionContent], Field(min_length=1, fail_fast=True), _at_most("max_images", "images")]
    labels: Annotated[list[NonEmptyText], Field(min_length=1, fail_fast=True), _at_most("max_labels", "labels")]
    prompt_template: Text | Annotated[list[Text], Field(min_length=1, max_length=_MOST_TEMPLATES)] | None = None
    user: Text | None = None

    @model_validator(mode="after")
    def _check_labels(self) -> ClassifyBody:
        seen: set[str] = set()
        for label in self.labels:
            if label in seen:
                raise ParameterError(f"label {shown(label)} is there twice; labels must differ", "labels")
            seen.add(label)
        if without := [template for template in self.templates if SLOT not in template]:
            raise ParameterError(
                f"{shown(without[0])} holds no {SLOT} for the label, and is no set of templates; there is "
                f"{', '.join(TEMPLATES)}",
                "prompt_template",
            )
        if (num := len(self.labels) * len(self.templates)) > _MOST_LABEL_TEXTS:
            raise ParameterError(
                f"{len(self.labels)} labels in {len(self.templates)} templates are {num} texts, more than "
                f"{_MOST_LABEL_TEXTS}; send fewer labels or templates",
                "prompt_template",
            )
        return self

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates, a published set spelled out; none where the model's own is meant."""
        given = self.prompt_template
        return () if given is None else spelled_out([given] if isinstance(given, str) else given)
