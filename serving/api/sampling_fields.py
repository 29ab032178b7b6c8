"""How a request wants its tokens chosen: fields that chats and completions share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from serving.api.fields import Strict, Text, at_most, limit_of
from serving.api.structured import GuidedChoice, GuidedJson, ResponseFormat, StructuredOutputs, structure_of
from serving.protocol import SamplingParams

MAX_SEED = 2**63 - 1
_ALL_IN_VLLM = -1
"""How clients of vLLM write a `top_k` that keeps the whole vocabulary; ours is 0."""
_MOST_BIASES = 1024
MOST_TOP_LOGPROBS = 20


def _check_bias(biases: dict[str, float]) -> dict[str, float]:
    for name, bias in biases.items():
        if not (name.isascii() and name.isdigit() and len(name) <= 9):
            raise PydanticCustomError("bias_token", 'its names must be token ids, such as "123"')
        if not -100 <= bias <= 100:
            raise PydanticCustomError("bias_range", "a bias must be between -100 and 100")
    return biases


def _check_choices(count: int, info: ValidationInfo) -> int:
    if count > (most := limit_of(info, "max_choices")):
        raise PydanticCustomError("too_many_choices", "one request may ask for {most} choices", {"most": most})
    return count


LogitBias = Annotated[dict[str, float], AfterValidator(_check_bias), at_most(_MOST_BIASES, "biases")]
NumChoices = Annotated[int, Field(ge=1), AfterValidator(_check_choices)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopTokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True), at_most(64, "token ids")]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]


class SamplingFields(Strict):
    """OpenAI's and vLLM's fields of sampling and structure.

    What they leave open is the model's own default (`generation.json`); a model without any takes the likeliest token.
    """

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    seed: int | None = Field(default=None, ge=-MAX_SEED - 1, le=MAX_SEED)
    priority: int = Field(default=0, ge=-10, le=10)
    stop: Stop | Annotated[list[Stop], Field(max_length=4, fail_fast=True)] | None = None
    n: NumChoices | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    min_tokens: int | None = Field(default=None, ge=0)
    ignore_eos: bool | None = None
    stop_token_ids: StopTokenIds | None = None
    include_stop_str_in_output: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: GuidedJson | None = None
    guided_regex: Text | None = None
    guided_choice: GuidedChoice | None = None
    guided_grammar: Text | None = None

    def sampling_of(self, max_tokens: int | None, top_logprobs: int | None) -> SamplingParams:
        """Return how tokens are chosen; what the request leaves open takes the engine's defaults.

        Args:
            max_tokens: Of the answer.
            top_logprobs: Told with each token; None tells none.
        """
        given: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == _ALL_IN_VLLM else self.top_k,
            # The generator takes no negative seeds; OpenAI's type is a signed one.
            "seed": None if self.seed is None else self.seed % 2**64,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": tuple((int(name), bias) for name, bias in (self.logit_bias or {}).items()),
            "min_tokens": self.min_tokens,
            "ignores_eos": self.ignore_eos,
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "includes_stop": self.include_stop_str_in_output,
            "top_logprobs": top_logprobs,
            "structure": structure_of(self.response_format, self.structured_outputs, self._guided),
        }
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})

    @property
    def _guided(self) -> dict[str, Any]:
        """vLLM's older fields, by kind."""
        fields = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        return {kind: value for kind, value in fields.items() if value is not None}
