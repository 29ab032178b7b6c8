"""Whether any answer of a structure ends: llguidance takes structures that can only go on, and runs until it is cut.

Both functions look for the rules, or the parts of a schema, that have an end if others have: those that do not need
themselves. What they do not understand, or would look at for too long, counts as something that ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

Named = TypeVar("Named")

_UNCLEAR = re.compile(
    r"(?P<comment>(?:#|//)[^\n]*)"
    r"|(?P<json>%\w+\s*(?=\{))"
    r'|"(?:\\.|[^"\\\n])*"?i?'
    r"|/(?:\\.|[^/\\])+/?[a-z]*"
    r"|<[^<>\s]*>?"
)
"""Comments, schemas, strings, regular expressions and special tokens: they end, and hold signs that mean nothing.

As llguidance's own reader has them (parser/src/lark/lexer.rs). What is not closed is taken as well, as far as it goes:
no letter is read twice.
"""
_HEAD = re.compile(r"^[?!]*([a-z_]\w*)(?:\[[^\]\n]*\])?\s*:", re.M)
_OTHER_HEAD = re.compile(r"^(?:%|[?!]*[A-Z]\w*(?:\[[^\]\n]*\])?\s*:)", re.M)
_SIGN = re.compile(r"->\s*\w+|[A-Za-z_]\w*|\{\s*(\d*)[^{}]*\}?|~\s*(\d+)[.\d\s]*|[|()\[\]*?+]|\S")


_MOST_LOOKS = 200_000
"""At parts of schemas and signs of rules: some tenths of a second."""


class _TooLongError(Exception):
    """All looks are used up."""


class _Looks:
    """Counts them."""

    def __init__(self) -> None:
        self._left = _MOST_LOOKS

    def spend(self, count: int = 1) -> None:
        """Use some up.

        Raises:
            _TooLongError: There are none left.
        """
        self._left -= count
        if self._left < 0:
            raise _TooLongError


def schema_can_end(schema: Mapping[str, Any]) -> bool:
    """Return whether a JSON schema has a value that is not nested for ever."""
    pointers = {each: _target(schema, each) for each in _references(schema) if each.startswith("#")}
    parts = _Parts(set(pointers))
    try:
        _ending(pointers, parts.ending, parts.ends)
        return parts.ends(schema)
    except _TooLongError:
        return True


def grammar_can_end(grammar: str) -> bool:
    """Return whether a Lark grammar has a word."""
    rules, ending, looks = _rules(grammar), set[str](), _Looks()
    try:
        _ending(rules, ending, lambda body: _Body(body, set(rules), ending, looks).ends())
    except _TooLongError:
        return True
    return "start" in ending or "start" not in rules


def _ending(named: Mapping[str, Named], ending: set[str], ends: Callable[[Named], bool]) -> None:
    """Add to `ending` the names of what ends, until that lets no other end."""
    left = list(named)
    while True:
        left.reverse()  # names are mostly used before they are said, or mostly after
        before = len(ending)
        for name in left:
            if ends(named[name]):
                ending.add(name)
        left = [name for name in left if name not in ending]
        if len(ending) == before:
            return


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for each in part.values():
            yield from _references(each)
    elif isinstance(part, list):
        for each in part:
            yield from _references(each)


def _target(schema: Any, pointer: str) -> Any:
    """Return the part of a schema that a reference names; True, which ends, where there is none."""
    for name in filter(None, pointer.removeprefix("#").split("/")):
        name = unquote(name).replace("~1", "/").replace("~0", "~")
        try:
            schema = schema[int(name)] if isinstance(schema, list) else schema[name]
        except (LookupError, TypeError, ValueError):
            return True
    return schema


class _Parts:
    """Parts of one schema.

    Args:
        pointers: References that it holds to parts of its own.

    Attributes:
        ending: Those of them that are known to end.
    """

    def __init__(self, pointers: set[str]) -> None:
        self._pointers = pointers
        self._looks = _Looks()
        self.ending: set[str] = set()

    def ends(self, part: Any) -> bool:
        """Return whether a part has a value that ends."""
        self._looks.spend()
        if not isinstance(part, Mapping):
            return True
        reference = part.get("$ref")
        if isinstance(reference, str) and reference in self._pointers and reference not in self.ending:
            return False
        if not all(self.ends(each) for each in _listed(part, "allOf")):
            return False
        for union in ("anyOf", "oneOf"):
            members = _listed(part, union)
            if members and not any(self.ends(each) for each in members):
                return False
        kinds = part.get("type", "object" if "properties" in part else "array" if "items" in part else "string")
        return any(self._kind_ends(kind, part) for kind in (kinds if isinstance(kinds, list) else [kinds]))

    def _kind_ends(self, kind: Any, part: Mapping[str, Any]) -> bool:
        if kind == "object":
            properties, others = part.get("properties"), part.get("additionalProperties", True)
            named = properties if isinstance(properties, Mapping) else {}
            return all(self.ends(named.get(name, others)) for name in _listed(part, "required"))
        if kind == "array":
            least, first = part.get("minItems", 0), _listed(part, "prefixItems")
            needed = first[: least if isinstance(least, int) else 0]
            more = [part.get("items", True)] if isinstance(least, int) and least > len(first) else []
            return all(self.ends(each) for each in [*needed, *more])
        return True


def _listed(part: Mapping[str, Any], name: str) -> list[Any]:
    found = part.get(name)
    return found if isinstance(found, list) else []


def _rules(grammar: str) -> dict[str, str]:
    """Return the bodies of a grammar's rules by name; terminals, which cannot need themselves, are left out."""
    text = _without_unclear(grammar)
    heads = [(match.start(), match.end(), match[1]) for match in _HEAD.finditer(text)]
    borders = sorted([start for start, _, _ in heads] + [match.start() for match in _OTHER_HEAD.finditer(text)])
    ends = dict(zip(borders, [*borders, len(text)][1:], strict=True))
    return {name: text[end : ends[start]] for start, end, name in heads}


def _without_unclear(grammar: str) -> str:
    """Return a grammar with a word in place of what ends, and without comments; read once, from left to right."""
    shown, place = [], 0
    while found := _UNCLEAR.search(grammar, place):
        shown += [grammar[place : found.start()], " " if found["comment"] else " S "]
        place = _json_end(grammar, found.end()) if found["json"] else found.end()
    return "".join([*shown, grammar[place:]])


def _json_end(grammar: str, start: int) -> int:
    """Return the place behind the JSON object that stands there; that place itself where it is none."""
    try:
        return json.JSONDecoder().raw_decode(grammar, start)[1]
    except (ValueError, RecursionError):
        return start


class _Body:
    """A rule's body, read once from left to right."""

    def __init__(self, body: str, rules: set[str], ending: set[str], looks: _Looks) -> None:
        looks.spend(1 + len(body) // 4)
        self._signs = [match for match in _SIGN.finditer(body) if not match[0].startswith("->")]
        self._rules = rules
        self._ending = ending
        self._place = 0

    def ends(self) -> bool:
        """Return whether one of the alternatives, up to the bracket that closes them, ends."""
        some_end, this_ends = False, True
        while self._place < len(self._signs):
            sign = self._signs[self._place][0]
            self._place += 1
            if sign in (")", "]"):
                break
            if sign == "|":
                some_end, this_ends = some_end or this_ends, True
                continue
            item_ends = self._item_ends(sign)
            this_ends = this_ends and (self._is_optional() or item_ends)
        return some_end or this_ends

    def _item_ends(self, sign: str) -> bool:
        if sign == "[":
            self.ends()
            return True
        return self.ends() if sign == "(" else sign not in self._rules or sign in self._ending

    def _is_optional(self) -> bool:
        """Take a repetition that follows an item; True where it allows none of it."""
        if self._place == len(self._signs):
            return False
        sign = self._signs[self._place]
        if sign[0] in ("*", "?", "+"):
            self._place += 1
            return sign[0] != "+"
        if sign[0][0] in "{~":
            self._place += 1
            return int(sign[1] or sign[2] or 0) == 0
        return False
