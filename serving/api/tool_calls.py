"""Calls of functions in an answer's text, told as the text comes."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from bundle.tools import CALL_END, CALL_START

_HEAD = re.compile(r'\s*(?:[\[,]\s*)?\{\s*"name"\s*:\s*"([\w-]{1,64})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
"""Of a call that can be told as it comes; any other is read once it is whole."""
_LONE = re.compile("[\ud800-\udfff]")
_BETWEEN = re.compile(r"[\s}\]]*")
"""Behind the arguments: what closes the call, and a list of calls."""
_MOST_HELD = 1 << 16
"""Characters of a call that is not told as it comes; what holds more, marks included, is text."""


@dataclass(frozen=True)
class SaidText:
    """A piece of what is said."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """A call begins.

    Attributes:
        place: Of the call among those of the answer.
        id: Its result is sent back under it.
        name: Of the function.
    """

    place: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments, which are the text of a JSON object."""

    place: int
    text: str


Said = SaidText | CallBegun | CallArguments


class CallReader:
    """Tells text and calls apart, as an answer comes.

    A call of a function that was not offered, or one that is no JSON, is text. Blanks around calls are dropped.

    Args:
        names: Of the functions that were offered.

    Attributes:
        num_calls: So far.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._left = ""
        self._num_looked_at = 0  # of what is left, while a call is held
        self._step = self._text
        self._blanks = list[str]()
        self._has_spoken = False
        self._arguments = _ObjectEnd()
        self.num_calls = 0

    def push(self, text: str) -> list[Said]:
        """Return what a further piece of text makes certain."""
        self._left += text
        return self._certain(is_end=False)

    def finish(self) -> list[Said]:
        """Return what was held back: the answer has ended."""
        said = self._certain(is_end=True)
        blanks = "".join(self._blanks)
        return said if self.num_calls or not blanks else [*said, SaidText(blanks)]

    def _certain(self, *, is_end: bool) -> list[Said]:
        said = list[Said]()
        while self._left:
            before = (self._step, len(self._left))
            said += self._step(is_end)
            if before == (self._step, len(self._left)):
                break
        return said

    def _text(self, is_end: bool) -> list[Said]:
        start = self._left.find(CALL_START)
        if start < 0:
            return self._spoken(self._taken(len(self._left) - (0 if is_end else _num_begun(self._left))))
        said = self._spoken(self._taken(start))
        self._step = self._call
        return said

    def _call(self, is_end: bool) -> list[Said]:
        """Read from the opening mark on, or from the comma between two calls of a list."""
        mark = CALL_START if self._left.startswith(CALL_START) else ""
        before, self._num_looked_at = self._num_looked_at, len(self._left)
        if self._left.find("{", before, _MOST_HELD) >= 0:  # a head ends before one
            head = _HEAD.match(self._left, len(mark), _MOST_HELD)
            if head and head[1] in self._names:
                self._taken(head.end())
                self._arguments, self._step = _ObjectEnd(), self._object
                return [self._begun(head[1])]
        end = self._left.find(CALL_END, max(before - len(CALL_END), 0), _MOST_HELD)
        if end < 0 and len(self._left) < _MOST_HELD and not is_end:
            return []
        self._step = self._text
        if end < 0 and len(self._left) >= _MOST_HELD:
            return self._spoken(self._taken(_MOST_HELD))
        return self._whole(self._taken(len(self._left) if end < 0 else end + len(CALL_END)), mark)

    def _object(self, is_end: bool) -> list[Said]:
        end = self._arguments.push(self._left)
        if end >= 0:
            self._step = self._behind
        return [CallArguments(self.num_calls - 1, self._taken(len(self._left) if end < 0 else end))]

    def _behind(self, is_end: bool) -> list[Said]:
        rest = _BETWEEN.sub("", self._left, count=1)
        if rest != CALL_END and CALL_END.startswith(rest):
            self._left = "" if is_end else rest
            return []
        self._left = rest.removeprefix(CALL_END)
        self._step = self._call if rest.startswith(",") else self._text
        return []

    def _whole(self, text: str, mark: str) -> list[Said]:
        """Return the calls of a text from mark to mark; the text itself where it holds none that may be."""
        calls = _calls_of(text.removeprefix(mark).removesuffix(CALL_END).strip(" \n\r\t,"))
        if not calls or not all(name in self._names for name, _ in calls):
            return self._spoken(text)
        said = list[Said]()
        for name, arguments in calls:
            said += [self._begun(name), CallArguments(self.num_calls - 1, arguments)]
        return said

    def _begun(self, name: str) -> CallBegun:
        self.num_calls += 1
        self._blanks.clear()
        return CallBegun(self.num_calls - 1, f"call_{uuid.uuid4().hex[:24]}", name)

    def _spoken(self, text: str) -> list[Said]:
        """Return a text, without blanks at its end until more follows."""
        said = text.rstrip()
        if not said:
            self._blanks.append(text)
            return []
        is_first_behind_calls = self.num_calls > 0 and not self._has_spoken
        said, after = "".join([*self._blanks, said]), text[len(said) :]
        self._blanks, self._has_spoken = [after], True
        return [SaidText(said.lstrip() if is_first_behind_calls else said)]

    def _taken(self, end: int) -> str:
        taken, self._left = self._left[:end], self._left[end:]
        self._num_looked_at = 0
        return taken


class _ObjectEnd:
    """Finds where a JSON object ends that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_text = self._is_escaped = False

    def push(self, piece: str) -> int:
        """Return the place behind the object's last brace; -1 where it is yet to come."""
        for place, letter in enumerate(piece):
            if self._is_escaped:
                self._is_escaped = False
            elif letter == '"':
                self._is_text = not self._is_text
            elif self._is_text:
                self._is_escaped = letter == "\\"
            elif letter in "{}":
                self._depth += 1 if letter == "{" else -1
                if self._depth == 0:
                    return place + 1
        return -1


def _num_begun(text: str) -> int:
    """Return the length of the longest tail that begins the opening mark."""
    return next((size for size in range(len(CALL_START) - 1, 0, -1) if text.endswith(CALL_START[:size])), 0)


def _calls_of(text: str) -> list[tuple[str, str]] | None:
    """Return names and arguments of a call, or of a list of calls; None where it is neither."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = [_call_of(each) for each in (found if isinstance(found, list) else [found])]
    return [call for call in calls if call] if all(calls) else None


def _call_of(found: Any) -> tuple[str, str] | None:
    if not isinstance(found, dict) or not isinstance(name := found.get("name"), str):
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):  # some models write the object as a text
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return (name, _json_of(arguments)) if isinstance(arguments, dict) else None


def _json_of(arguments: dict[str, Any]) -> str:
    """Return arguments as text; half a surrogate pair stays an escape, for no answer can hold it otherwise."""
    text = json.dumps(arguments, ensure_ascii=False)
    return text if text.isascii() or not _LONE.search(text) else json.dumps(arguments)
