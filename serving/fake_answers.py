"""What an engine without a model answers: words that follow from the request by rule."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from bundle.decode import decode_image
from bundle.errors import ContextLengthError
from bundle.frames.opening import open_clip
from bundle.frames.sampling import chosen_frames
from serving.protocol import (
    FinishReason,
    GenerateRequest,
    ImagePart,
    ModelCard,
    Structure,
    TextPart,
    TokenizeRequest,
    TokenLogprob,
    ToolCall,
    Usage,
    VideoPart,
)

TOKENS_PER_IMAGE = 4


@dataclass(frozen=True)
class PlannedAnswer:
    """An answer: its pieces, why it ends, the counts, and the stop text that ends it."""

    words: list[str]
    reason: FinishReason
    usage: Usage
    stopped_by: str | None


def planned_answer(request: GenerateRequest, card: ModelCard, text: str | None) -> PlannedAnswer:
    """Return the answer, cut by stop strings and by `max_tokens`."""
    parts = [part for message in request.messages for part in message.parts]
    images = [part for part in parts if isinstance(part, ImagePart)]
    for image in images:
        decode_image(image.data)
    num_frames = sum(_num_frames(part) for part in parts if isinstance(part, VideoPart))
    num_image_tokens = TOKENS_PER_IMAGE * (len(images) + num_frames)
    prompt_tokens = num_image_tokens + sum(len(part.text.split()) for part in parts if isinstance(part, TextPart))
    prompt_tokens += len((request.text or "").split())
    limit = card.context_tokens or 64
    if prompt_tokens >= limit:
        raise ContextLengthError(f"the prompt has {prompt_tokens} tokens; the model holds {limit}", "messages")
    by_rule = " ".join(f"{len(images)} images. {_asked(request)}".split())
    answer = _structured(request.sampling.structure, text) or (by_rule if text is None else text)
    stopped_by = None
    for stop in request.sampling.stop:
        stopped_by = stop if stop in answer else stopped_by
        answer = answer.split(stop)[0] + (stop if request.sampling.includes_stop and stop in answer else "")
    words = re.findall(r"\s*\S+", answer)
    room = limit - prompt_tokens
    shown = words[: room if request.sampling.max_tokens is None else min(room, request.sampling.max_tokens)]
    reason: FinishReason = "length" if len(shown) < len(words) else "stop"
    kept_share = 1.0 if request.kv is None else request.kv.budget
    usage = Usage(
        prompt_tokens,
        len(shown) * request.num_choices,
        num_image_tokens,
        cache_rows_before=prompt_tokens,
        cache_rows_after=math.floor(prompt_tokens * kept_share),
        kept_image_tokens=num_image_tokens,
    )
    return PlannedAnswer(shown, reason, usage, stopped_by if reason == "stop" else None)


def prompt_words(request: TokenizeRequest) -> list[str]:
    """Return a prompt's words, a token each, then its images' tokens."""
    parts = [part for message in request.messages for part in message.parts]
    words = [word for part in parts if isinstance(part, TextPart) for word in part.text.split()]
    return words + ["image"] * (TOKENS_PER_IMAGE * sum(isinstance(part, ImagePart) for part in parts))


def _structured(structure: Structure | None, told: str | None = None) -> str:
    """Return an answer of a structure, as far as one is known without a model; empty where none is.

    Args:
        structure: That holds it.
        told: What is answered where it may be a call or not.
    """
    if structure is None or structure.is_optional:
        return ""
    if structure.kind == "tools":
        return _call(json.loads(structure.text)) or told or _structured(structure.answer)
    if structure.kind == "choice":
        return str(json.loads(structure.text)[0])
    return "{}" if structure.kind == "json" else ""


def _call(asked: dict[str, Any]) -> str:
    tool = asked["tools"][0]
    arguments = json.dumps(_example(tool["parameters"])) if asked["is_required"] else ""
    return arguments and ToolCall("", tool["name"], arguments).text


def _example(schema: dict[str, Any]) -> Any:
    """Return a value of a schema, as far as that is simple."""
    if "enum" in schema:
        return schema["enum"][0]
    values: dict[str, Any] = {"string": "x", "integer": 0, "number": 0.5, "boolean": False, "array": [], "null": None}
    if schema.get("type") != "object":
        return values.get(schema.get("type", ""))
    return {name: _example(schema["properties"][name]) for name in schema.get("required", ())}


def word_logprobs(word: str, num_top: int | None) -> tuple[TokenLogprob, ...]:
    """Return what a word's token and so many others cost; nothing where it was not asked for."""
    if num_top is None:
        return ()
    alternatives = [word, *(f"{word}-{place}" for place in range(1, num_top))][:num_top]
    top = tuple(TokenLogprob(each.encode(), -float(place)) for place, each in enumerate(alternatives, 1))
    return (TokenLogprob(word.encode(), -1.0, top),)


def _num_frames(video: VideoPart) -> int:
    """Return how many frames are looked at, all of them decoded."""
    clip = open_clip(video.files, video.options.list_fps)
    chosen = chosen_frames(clip.times_s, clip.duration_s, video.options)
    return sum(1 for _ in clip.pictures(chosen))


def _asked(request: GenerateRequest) -> str:
    if request.text is not None:
        return request.text
    return " ".join(part.text for part in request.messages[-1].parts if isinstance(part, TextPart))
