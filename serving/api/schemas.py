"""Request bodies. A field that is not here is refused; types are strict: "1" is no number.

A field whose value changes nothing is taken: null, empty, the default, or what common clients always send. Lists are
counted before their items are looked at, and nothing is validated beyond the first fault of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from typing_extensions import Self

from bundle.errors import ParameterError
from bundle.zero_shot import SLOT
from serving.api.validation import shown
from serving.protocol import SamplingParams

MAX_SEED = 2**63 - 1
_ALL_IN_VLLM = -1
"""How clients of vLLM write a `top_k` that keeps the whole vocabulary; ours is 0."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_the_first_unknown_field(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Pydantic would make an error of each, at a kilobyte apiece.
        unknown = next((name for name in value if name not in cls.model_fields), None) if type(value) is dict else None
        if unknown is None:
            return handler(value)
        handler({name: each for name, each in value.items() if name in cls.model_fields})  # tells more where it fails
        # In a tuple, for pydantic would encode a bare text, and half a surrogate pair cannot be.
        raise PydanticCustomError(
            "unknown_field", "this field is unknown or not supported; remove it", {"path": (unknown,)}
        )


def _limit(info: ValidationInfo, name: str) -> int:
    """Return a limit of the `ApiSettings` that a body is validated with."""
    return int(getattr(info.context, name))


def _at_most(limit: str | int, noun: str) -> BeforeValidator:
    """Return what counts a list or object before its items are looked at: to a number or a limit of `ApiSettings`."""

    def count(value: Any, info: ValidationInfo) -> Any:
        most = limit if isinstance(limit, int) else _limit(info, limit)
        if isinstance(value, (list, dict)) and len(value) > most:
            context = {"count": len(value), "noun": noun, "most": most}
            raise PydanticCustomError("too_many", "{count} {noun}; one request may hold {most}", context)
        return value

    return BeforeValidator(count)


@dataclass(frozen=True)
class Unbuilt:
    """The type of a field that is not built: it may be null, or have a value that changes nothing.

    Attributes:
        neutral: Those values.
    """

    neutral: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Take the neutral values as null."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe them."""
        return {"enum": [None, *self.neutral], "description": "Not supported: taken where it changes nothing."}

    def _check(self, value: Any) -> None:
        # True equals 1 in Python, and is no number.
        if value is not None and not any(value == each and type(value) is type(each) for each in self.neutral):
            raise PydanticCustomError("unsupported", "not supported; leave it out")


Off = Annotated[Any, Unbuilt()]
OffOrFalse = Annotated[Any, Unbuilt((False,))]
OffOrEmptyList = Annotated[Any, Unbuilt(([],))]
OffOrEmptyObject = Annotated[Any, Unbuilt(({},))]
OffOrZero = Annotated[Any, Unbuilt((0, 0.0))]
OffOrOne = Annotated[Any, Unbuilt((1, 1.0))]


def _whole_characters(text: str, info: ValidationInfo) -> str:
    """Refuse a text that no model holds, and half a surrogate pair, which JSON can write and no encoding can."""
    if len(text) > (most := _limit(info, "max_text_characters")):
        context = {"count": len(text), "noun": "characters", "most": most}
        raise PydanticCustomError("too_many", "{count} {noun}; one text may hold {most}", context)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("unicode", "a lone surrogate is no character; send valid Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Name = Annotated[Text, Field(max_length=256)]


class ImageUrl(_Strict):
    """Where an image is: a data URL. `detail` changes nothing: the model's own resolution is used."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextContent(_Strict):
    """A piece of text."""

    type: Literal["text"]
    text: Text


class ImageContent(_Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Content = Annotated[TextContent | ImageContent, Field(discriminator="type")]
_AtMostParts = _at_most("max_parts", "parts")
Texts = Annotated[list[TextContent], Field(fail_fast=True), _AtMostParts]
Contents = Annotated[list[Content], Field(fail_fast=True), _AtMostParts]


class _Message(_Strict):
    """What every message may carry. `name` tells the model nothing: templates have no place for it."""

    name: Name | None = None


class SystemMessage(_Message):
    """What the operator tells the model: text alone. `developer` is OpenAI's newer word for it."""

    role: Literal["system", "developer"]
    content: Text | Texts


class AssistantMessage(_Message):
    """What the model said before: text alone, as this server and others write their answers."""

    role: Literal["assistant"]
    content: Text | Texts | None = None
    refusal: Off = None
    tool_calls: OffOrEmptyList = None
    function_call: Off = None
    audio: Off = None
    annotations: OffOrEmptyList = None
    reasoning: Off = None
    reasoning_content: Off = None
    parsed: Off = None


class UserMessage(_Message):
    """What the user says and shows."""

    role: Literal["user"]
    content: Text | Contents


ChatMessage = Annotated[SystemMessage | AssistantMessage | UserMessage, Field(discriminator="role")]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]


class StreamOptions(_Strict):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: OffOrFalse = None
    continuous_usage_stats: OffOrFalse = None


class ChatRequest(_Strict):
    """The body of `POST /v1/chat/completions`.

    What it leaves open is the model's own default (`generation.json`); a model without any takes the likeliest token.
    `user`, `safety_identifier`, `metadata` and `prompt_cache_key` tell of the caller, and change no answer.
    """

    model: Name
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True), _at_most("max_messages", "messages")]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    seed: int | None = Field(default=None, ge=-MAX_SEED - 1, le=MAX_SEED)
    priority: int = Field(default=0, ge=-10, le=10)
    stop: Stop | Annotated[list[Stop], Field(max_length=4, fail_fast=True)] | None = None

    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    metadata: Annotated[dict[str, Text], _at_most(16, "entries")] | None = None

    n: OffOrOne = None
    best_of: OffOrOne = None
    frequency_penalty: OffOrZero = None
    presence_penalty: OffOrZero = None
    repetition_penalty: OffOrOne = None
    length_penalty: OffOrOne = None
    min_p: OffOrZero = None
    min_tokens: OffOrZero = None
    logprobs: OffOrFalse = None
    top_logprobs: OffOrZero = None
    logit_bias: OffOrEmptyObject = None
    response_format: Annotated[Any, Unbuilt(({"type": "text"},))] = None
    tools: OffOrEmptyList = None
    tool_choice: Annotated[Any, Unbuilt(("none", "auto"))] = None
    parallel_tool_calls: Annotated[Any, Unbuilt((True, False))] = None
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
    ignore_eos: OffOrFalse = None
    use_beam_search: OffOrFalse = None
    skip_special_tokens: Annotated[Any, Unbuilt((True,))] = None

    @model_validator(mode="after")
    def _check_pairs(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options is only allowed with stream: true", "stream_options")
        if None not in (both := {self.max_tokens, self.max_completion_tokens}) and len(both) > 1:
            raise ParameterError("max_tokens and max_completion_tokens differ; send one of them", "max_tokens")
        return self

    @property
    def includes_usage(self) -> bool:
        """True where the stream shall end with the token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self) -> SamplingParams:
        """Return how tokens are chosen; what the request leaves open takes the engine's defaults."""
        max_tokens = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        given: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == _ALL_IN_VLLM else self.top_k,
            # The generator takes no negative seeds; OpenAI's type is a signed one.
            "seed": None if self.seed is None else self.seed % 2**64,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
        }
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def _refuse_token_ids(value: Any) -> Any:
    if isinstance(value, int) or (isinstance(value, list) and value and isinstance(value[0], int)):
        raise PydanticCustomError(
            "token_ids",
            "token ids are not taken, since they belong to another model's tokenizer; send text (in LangChain: "
            "check_embedding_ctx_length=False)",
        )
    return value


NonEmptyText = Annotated[Text, Field(min_length=1)]
EmbeddingInput = Annotated[NonEmptyText | TextContent | ImageContent, BeforeValidator(_refuse_token_ids)]
_AtMostInputs = _at_most("max_inputs", "inputs")


class EmbeddingMessage(_Strict):
    """One input written as a message, as vLLM takes images."""

    role: Literal["user"]
    content: NonEmptyText | Annotated[list[Content], Field(min_length=1, max_length=1, fail_fast=True)]


class EmbeddingRequest(_Strict):
    """The body of `POST /v1/embeddings`: `input`, or `messages` that each hold one text or one image.

    `dimensions` may be the model's own size; `user` tells of the caller, and changes no answer.
    """

    model: Name
    input: NonEmptyText | Annotated[list[EmbeddingInput], Field(min_length=1, fail_fast=True), _AtMostInputs] | None = (
        None
    )
    messages: Annotated[list[EmbeddingMessage], Field(min_length=1, fail_fast=True), _AtMostInputs] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    user: Text | None = None
    truncate_prompt_tokens: Off = None

    @model_validator(mode="after")
    def _check_one_source(self) -> EmbeddingRequest:
        if (self.input is None) == (self.messages is None):
            raise ParameterError("send either input or messages, and not both", "input")
        return self

    def contents(self) -> list[str | TextContent | ImageContent]:
        """Return the inputs in their order."""
        if self.messages is not None:
            return [m.content if isinstance(m.content, str) else m.content[0] for m in self.messages]
        return [self.input] if isinstance(self.input, str) else list(self.input or ())


class ClassifyBody(_Strict):
    """The body of `POST /v1/classify`. In `prompt_template`, "{}" stands for a label."""

    model: Name
    images: Annotated[list[ImageContent], Field(min_length=1, fail_fast=True), _at_most("max_images", "images")]
    labels: Annotated[list[NonEmptyText], Field(min_length=1, fail_fast=True), _at_most("max_labels", "labels")]
    prompt_template: Text | None = None
    user: Text | None = None

    @model_validator(mode="after")
    def _check_labels(self) -> ClassifyBody:
        seen: set[str] = set()
        for label in self.labels:
            if label in seen:
                raise ParameterError(f"label {shown(label)} is there twice; labels must differ", "labels")
            seen.add(label)
        if self.prompt_template is not None and SLOT not in self.prompt_template:
            raise ParameterError(f"{shown(self.prompt_template)} holds no {SLOT} for the label", "prompt_template")
        return self
