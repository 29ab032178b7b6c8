"""What is wrong with a request body, told by the name of the field and its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bundle.errors import ParameterError

_VALUE_CHARACTERS = 80


def explain(problems: Sequence[Mapping[str, Any]], body: Any) -> ParameterError:
    """Return the error for the most specific of pydantic's problems.

    Args:
        problems: As `RequestValidationError.errors()` gives them, at least one.
        body: The parsed body, or its raw text where it did not parse.
    """
    paths = [_path(problem, body) for problem in problems]

    def precision(place: int) -> tuple[int, bool]:
        # Of a union's members, the one that got furthest, and rather one that had the right type, is what was meant.
        return len(paths[place]), not problems[place]["type"].endswith("_type")

    meant = max(range(len(paths)), key=precision)
    param = ".".join(str(part) for part in paths[meant])
    return ParameterError(_message(problems[meant], param), param or None)


def _message(problem: Mapping[str, Any], param: str) -> str:
    kind, text, context = problem["type"], problem["msg"], problem.get("ctx", {})
    if kind == "json_invalid":
        return f"the body is not JSON: {context.get('error', text)}"
    if not param:
        return f"the body must be a JSON object, sent as application/json: {text}"
    if kind == "extra_forbidden":
        return f"{param}: this field is unknown or not supported; remove it"
    if kind in ("missing", "union_tag_not_found"):
        return f"{param}: this field is required"
    if kind == "union_tag_invalid":
        return f"{param} = {context['tag']!r}: it must be one of {context['expected_tags']}"
    value = repr(problem["input"])
    shown = value if len(value) <= _VALUE_CHARACTERS else value[:_VALUE_CHARACTERS] + "..."
    return f"{param} = {shown}: {text}"


def _path(problem: Mapping[str, Any], body: Any) -> list[str | int]:
    """Return the path to the fault within the body: pydantic's, without the names it gives to a union's members."""
    path: list[str | int] = []
    location = [part for part in problem["loc"] if part != "body"]
    for place, part in enumerate(location):
        if _holds(body, part):
            body = body[part]
        elif not (problem["type"] == "missing" and place == len(location) - 1):
            continue
        path.append(part)
    if problem["type"].startswith("union_tag_"):
        path.append(problem["ctx"]["discriminator"].strip("'"))
    return path


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value
