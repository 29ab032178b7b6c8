"""What is wrong with a request body, told by the name of the field and its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bundle.errors import ParameterError

_VALUE_CHARACTERS = 80
_SPEAK_FOR_THEMSELVES = frozenset({"too_many", "unknown_field", "token_ids", "unicode", "no_json"})
"""Problems of our own schemas whose text needs no value beside it."""


def explain(problems: Sequence[Mapping[str, Any]], body: Any) -> ParameterError:
    """Return the error for the most specific of pydantic's problems.

    Args:
        problems: As `ValidationError.errors()` gives them, at least one, and few: the schemas stop at a list's first.
        body: The parsed body.
    """
    paths = [_path(problem, body) for problem in problems]

    def precision(place: int) -> tuple[int, bool]:
        # Of a union's members, the one that got furthest, and rather one that had the right type, is what was meant.
        return len(paths[place]), not problems[place]["type"].endswith("_type")

    meant = max(range(len(paths)), key=precision)
    param = ".".join(_printable(str(part)) for part in paths[meant])
    return ParameterError(_message(problems[meant], param), param or None)


def _message(problem: Mapping[str, Any], param: str) -> str:
    kind, text, context = problem["type"], problem["msg"], problem.get("ctx", {})
    if kind in _SPEAK_FOR_THEMSELVES:
        return f"{param}: {text}"
    if kind in ("missing", "union_tag_not_found"):
        return f"{param}: this field is required"
    if kind == "union_tag_invalid":
        return f"{param} = {shown(context['tag'])}: it must be one of {context['expected_tags']}"
    return f"{param} = {shown(problem['input'])}: {text}"


def _printable(name: str) -> str:
    """Return a field's name so that it can be sent back: of bounded length, and half surrogate pairs written out."""
    cut = name if len(name) <= _VALUE_CHARACTERS else f"{name[:_VALUE_CHARACTERS]}..."
    return cut.encode(errors="backslashreplace").decode()


def shown(value: Any) -> str:
    """Return a value as the caller knows it, without ever writing out a large one."""
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        return f"{kind} of {len(value)}" if len(value) > 1 else f"{kind}" if value else repr(value)
    if isinstance(value, str) and len(value) > _VALUE_CHARACTERS:
        return f"{value[:_VALUE_CHARACTERS]!r}..."
    text = repr(value)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}..."


def _path(problem: Mapping[str, Any], body: Any) -> list[str | int]:
    """Return the path to the fault within the body: pydantic's, without the names it gives to a union's members."""
    path: list[str | int] = []
    location = problem["loc"]
    fields = (*location, *(problem["ctx"]["path"] if problem["type"] == "unknown_field" else ()))
    for place, part in enumerate(location):
        if _holds(body, part):
            if _is_tag(body, part, fields[place + 1 : place + 2]):
                continue
            body = body[part]
        elif not (problem["type"] == "missing" and place == len(location) - 1):
            continue
        path.append(part)
    if problem["type"] == "unknown_field":
        path.extend(problem["ctx"]["path"])
    if problem["type"].startswith("union_tag_"):
        path.append(problem["ctx"]["discriminator"].strip("'"))
    return path


def _is_tag(value: Any, part: str | int, further: Sequence[str | int]) -> bool:
    """Return whether part of a path is the name of a union's member, though a field is called like it (`video`)."""
    if not isinstance(value, dict) or value.get("type") != part:
        return False
    return any(_holds(value, each) and not _holds(value[str(part)], each) for each in further)


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value
