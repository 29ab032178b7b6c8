"""The choices of a chat completion as OpenAI writes them: whole, or an event at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bundle.grounding import Grounded, GroundedObject
from serving.api.answering import Ending, Gathered
from serving.api.tool_calls import CallBegun, Said, SaidText
from serving.protocol import TokenLogprob


def whole_body(index: int, choice: Gathered, tells_logprobs: bool) -> dict[str, Any]:
    """Return a choice as a part of an answer that is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        calls = [_call_body(call.id, call.name, call.arguments) for call in choice.calls]
        message = {**message, "content": choice.text or None, "tool_calls": calls}
    if choice.grounded is not None:
        message["grounding"] = grounding_body(choice.grounded)
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_body(choice.logprobs) if tells_logprobs else None,
        "finish_reason": choice.reason,
    }


def grounding_body(grounded: Grounded) -> dict[str, Any]:
    """Return what is said without marks, and where that lies, or the fields of a document."""
    body: dict[str, Any] = {"text": grounded.text, "objects": [_object_body(each) for each in grounded.objects]}
    return body if grounded.fields is None else {**body, "fields": grounded.fields}


def _object_body(found: GroundedObject) -> dict[str, Any]:
    boxes = [list(box) for box in found.boxes]
    body: dict[str, Any] = {"text": found.text, "start": found.start, "end": found.end, "boxes": boxes}
    if found.points:
        body["points"] = [asdict(each) for each in found.points]
    return {**body, "polygons": [list(each) for each in found.polygons]} if found.polygons else body


def role_body(index: int) -> dict[str, Any]:
    """Return what a choice's first event holds."""
    return choice_body(index, {"role": "assistant", "content": ""}, None, None)


def deltas(said: Sequence[Said]) -> list[dict[str, Any]]:
    """Return what the events of a piece add to a choice's message."""
    return [_delta(each) for each in said]


def _delta(said: Said) -> dict[str, Any]:
    if isinstance(said, SaidText):
        return {"content": said.text}
    if isinstance(said, CallBegun):
        return {"tool_calls": [{"index": said.place, **_call_body(said.id, said.name, "")}]}
    return {"tool_calls": [{"index": said.place, "function": {"arguments": said.text}}]}


def _call_body(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def logprobs_body(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return tokens with their logprobs and alternatives."""
    content = [{**_token_body(each), "top_logprobs": [_token_body(top) for top in each.top]} for each in logprobs]
    return {"content": content, "refusal": None}


def _token_body(each: TokenLogprob) -> dict[str, Any]:
    # A part of a character has no text of its own; the bytes tell it.
    return {"token": each.data.decode(errors="replace"), "logprob": each.logprob, "bytes": list(each.data)}


def choice_body(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: Ending | None
) -> dict[str, Any]:
    """Return what an event says of a choice."""
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
