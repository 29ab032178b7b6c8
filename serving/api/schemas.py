"""Request bodies. A field that is not here is refused; types are strict: "1" is no number."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from bundle.errors import ParameterError
from bundle.zero_shot import SLOT
from serving.protocol import SamplingParams

MAX_SEED = 2**63 - 1
_ALL_IN_VLLM = -1
"""How clients of vLLM write a `top_k` that keeps the whole vocabulary; ours is 0."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _whole_characters(text: str) -> str:
    """Refuse half a surrogate pair, which JSON can write and no encoding can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("unicode", "a lone surrogate is no character; send valid Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]


class ImageUrl(_Strict):
    """Where an image is: a data URL. `detail` may only be "auto": the model's own resolution is used."""

    url: str
    detail: Literal["auto"] | None = None


class TextContent(_Strict):
    """A piece of text."""

    type: Literal["text"]
    text: Text


class ImageContent(_Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Content = Annotated[TextContent | ImageContent, Field(discriminator="type")]


class SystemMessage(_Strict):
    """What the operator tells the model, or what the model said before: text alone."""

    role: Literal["system", "assistant"]
    content: Text | list[TextContent]


class UserMessage(_Strict):
    """What the user says and shows."""

    role: Literal["user"]
    content: Text | list[Content]


ChatMessage = Annotated[SystemMessage | UserMessage, Field(discriminator="role")]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class StreamOptions(_Strict):
    """What a stream carries besides the answer."""

    include_usage: bool = False


class TextFormat(_Strict):
    """The answer is free text, as it is without a `response_format`."""

    type: Literal["text"]


Zero = Annotated[float, Field(ge=0, le=0)]


class ChatRequest(_Strict):
    """The body of `POST /v1/chat/completions`.

    Fields that are not built are taken at the one value that changes nothing, since common clients send it: `n` 1,
    penalties 0, `logprobs` false, `response_format` text; `user` names the caller to nobody.

    What it leaves open is the model's own default (`generation.json`); a model without any takes the likeliest token.
    """

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logprobs: Literal[False] | None = None
    response_format: TextFormat | None = None
    user: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None

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
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> SamplingParams:
        """Return how tokens are chosen; what the request leaves open takes the engine's defaults."""
        max_tokens = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        given: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == _ALL_IN_VLLM else self.top_k,
            "seed": self.seed,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
        }
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})


NonEmptyText = Annotated[str, Field(min_length=1)]
EmbeddingInput = NonEmptyText | TextContent | ImageContent


class EmbeddingMessage(_Strict):
    """One input written as a message, as vLLM takes images."""

    role: Literal["user"]
    content: NonEmptyText | Annotated[list[Content], Field(min_length=1, max_length=1)]


class EmbeddingRequest(_Strict):
    """The body of `POST /v1/embeddings`: `input`, or `messages` that each hold one text or one image."""

    model: str
    input: NonEmptyText | Annotated[list[EmbeddingInput], Field(min_length=1)] | None = None
    messages: Annotated[list[EmbeddingMessage], Field(min_length=1)] | None = None
    encoding_format: Literal["float", "base64"] = "float"

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

    model: str
    images: list[ImageContent] = Field(min_length=1)
    labels: list[NonEmptyText] = Field(min_length=1)
    prompt_template: Text | None = None

    @model_validator(mode="after")
    def _check_labels(self) -> ClassifyBody:
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ParameterError(f"label {twice!r} is there twice; labels must differ", "labels")
        if self.prompt_template is not None and SLOT not in self.prompt_template:
            raise ParameterError(f"{self.prompt_template!r} holds no {SLOT} for the label", "prompt_template")
        return self
