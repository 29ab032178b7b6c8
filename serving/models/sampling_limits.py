"""What sampling parameters mean nothing, or nothing to this model: each is refused with its name and its range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bundle.errors import ParameterError
from serving.protocol import GenerateRequest, SamplingParams

_MAX_STOPS = 4
_MAX_BIAS = 100
_MAX_PENALTY = 2
_MAX_TOP_LOGPROBS = 20

_LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_tokens": (lambda count: count >= 1, "at least 1"),
    "temperature": (lambda heat: 0 <= heat < float("inf"), "0 or more, and finite"),
    "top_p": (lambda mass: 0 < mass <= 1, "above 0 and at most 1"),
    "top_k": (lambda count: count >= 0, "0 (all) or more"),
    "min_p": (lambda share: 0 <= share <= 1, "between 0 and 1"),
    "repetition_penalty": (lambda factor: 0 < factor <= _MAX_PENALTY, f"above 0 and at most {_MAX_PENALTY}"),
    "frequency_penalty": (lambda points: abs(points) <= _MAX_PENALTY, f"between -{_MAX_PENALTY} and {_MAX_PENALTY}"),
    "presence_penalty": (lambda points: abs(points) <= _MAX_PENALTY, f"between -{_MAX_PENALTY} and {_MAX_PENALTY}"),
    "min_tokens": (lambda count: count >= 0, "0 or more"),
    "top_logprobs": (lambda count: 0 <= count <= _MAX_TOP_LOGPROBS, f"between 0 and {_MAX_TOP_LOGPROBS}"),
    "stop": (lambda texts: len(texts) <= _MAX_STOPS and all(texts), f"at most {_MAX_STOPS} texts, none empty"),
}


def check_sampling(request: GenerateRequest, vocab_size: int, cache_tokens: int) -> None:
    """Refuse sampling that means nothing.

    Args:
        request: Its sampling and its number of choices.
        vocab_size: V of the model.
        cache_tokens: Rows that the model's cache has in all.

    Raises:
        ParameterError: A value is out of range, or two of them exclude each other; the message says which.
    """
    sampling = request.sampling
    for name, (is_good, limit) in _LIMITS.items():
        value = getattr(sampling, name)
        if value is not None and not is_good(value):
            raise ParameterError(f"{name} is {value!r}; it must be {limit}", name)
    _check_ids(sampling, vocab_size)
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise ParameterError(
            f"min_tokens is {sampling.min_tokens}, more than max_tokens, which is {sampling.max_tokens}", "min_tokens"
        )
    if sampling.structure is not None:
        _check_structure_is_alone(sampling, sampling.structure.param)
    _check_room(request, cache_tokens)


def _check_ids(sampling: SamplingParams, vocab_size: int) -> None:
    ids = {"logit_bias": [token_id for token_id, _ in sampling.logit_bias], "stop_token_ids": sampling.stop_token_ids}
    for name, of_field in ids.items():
        for token_id in of_field:
            if not 0 <= token_id < vocab_size:
                raise ParameterError(f"{name}: {token_id} is no token; the model has 0 to {vocab_size - 1}", name)
    for token_id, bias in sampling.logit_bias:
        if not abs(bias) <= _MAX_BIAS:
            raise ParameterError(
                f"logit_bias of token {token_id} is {bias}; it must be between -{_MAX_BIAS} and {_MAX_BIAS}",
                "logit_bias",
            )


def _check_structure_is_alone(sampling: SamplingParams, param: str) -> None:
    """Refuse what would end an answer before its structure is whole, or after it."""
    others = {
        "stop": sampling.stop,
        "stop_token_ids": sampling.stop_token_ids,
        "min_tokens": sampling.min_tokens,
        "ignore_eos": sampling.ignores_eos,
    }
    for name, value in others.items():
        if value:
            raise ParameterError(f"{name} and {param} exclude each other: the structure alone ends the answer", name)


def _check_room(request: GenerateRequest, cache_tokens: int) -> None:
    num_choices, max_tokens = request.num_choices, request.sampling.max_tokens
    if num_choices < 1:
        raise ParameterError(f"n is {num_choices}; it must be at least 1", "n")
    if num_choices > 1 and max_tokens is not None and num_choices * max_tokens > cache_tokens:
        raise ParameterError(
            f"n times max_tokens is {num_choices} x {max_tokens} = {num_choices * max_tokens} tokens; the model's "
            f"cache holds {cache_tokens} in all. Ask for fewer or shorter choices.",
            "n",
        )
