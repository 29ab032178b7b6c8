"""What a conversation is made of; and how it is told to a template that knows no functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from bundle.tools import Tool, ToolCall, result_wording, tools_wording


class Placeholder(Enum):
    """What stands in a turn for something that is not text."""

    IMAGE = "image"
    VIDEO = "video"
    """A whole video, of a model that has tokens of its own for those."""


@dataclass(frozen=True)
class Turn:
    """One message: its role, its texts and images in order, and the calls of functions that it makes.

    The result of a call is a turn of the role "tool".
    """

    role: str
    parts: tuple[str | Placeholder, ...]
    calls: tuple[ToolCall, ...] = ()


def in_words(turns: Sequence[Turn], tools: Sequence[Tool]) -> list[Turn]:
    """Return a conversation with all that concerns functions in its texts, for a template that knows none.

    Results become a user's turns; those that follow one another, and what the user says then, become one, since most
    templates want user and assistant in turn.
    """
    told = list[Turn]()
    follows_result = False
    for turn in turns:
        own = _turn_in_words(turn)
        if follows_result and own.role == "user":
            before = told.pop()
            own = replace(before, parts=(*before.parts, "\n", *own.parts))
        told.append(own)
        follows_result = turn.role == "tool"
    if not tools:
        return told
    wording = tools_wording(tools)
    if told and told[0].role == "system":
        return [replace(told[0], parts=(*told[0].parts, "\n\n", wording)), *told[1:]]
    return [Turn("system", (wording,)), *told]


def _turn_in_words(turn: Turn) -> Turn:
    if turn.role == "tool":
        return Turn("user", (result_wording("".join(part for part in turn.parts if isinstance(part, str))),))
    if turn.calls:
        calls = "\n".join(call.text for call in turn.calls)
        said = [part for part in turn.parts if part]
        return Turn(turn.role, (*said, f"\n{calls}" if said else calls))
    return turn
