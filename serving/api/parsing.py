"""From the bytes of a body, whose size and number of values were judged, to what a route works with."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from bundle.errors import ParameterError
from serving.api.validation import explain
from serving.settings import ApiSettings

Schema = TypeVar("Schema", bound=BaseModel)

_SECOND_READING_BYTES = 4 << 20
"""Python's own parser takes 8 ns a byte where there is a character beyond Latin-1, in which nothing else runs."""
_NO_UTF_8 = "the body is not JSON in UTF-8"
_NAMES = {list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}


def check_content_type(request: Request) -> None:
    """Refuse a body that does not call itself JSON.

    Raises:
        ParameterError: Its `Content-Type` says something else, or is missing.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    found = f"it is {kind!r}" if kind else "it is missing"
    raise ParameterError(f"the header Content-Type must be application/json; {found}")


def parse_body(content: list[bytes], schema: type[Schema], limits: ApiSettings) -> Schema:
    """Return the parsed body.

    Args:
        content: The one body; emptied, so that its bytes go before its images are decoded.
        schema: What it must be.
        limits: Counts that the schema refuses to go beyond.

    Raises:
        ParameterError: It is no JSON object, or a field is wrong; the message names the field.
    """
    value = _json(content.pop())
    if not isinstance(value, dict):
        raise ParameterError(f"the body must be a JSON object; it is {_NAMES[type(value)]}")
    try:
        return schema.model_validate(value, context=limits)
    except ValidationError as error:
        raise explain(error.errors(include_url=False), value) from None


def _json(content: bytes) -> Any:
    """Return what a body says: read by pydantic's parser, which is fast on large ones, or by Python's.

    Python's tells better what is wrong, and takes what the other refuses: UTF-16, and half surrogate pairs, which the
    schema then refuses by the field's name.
    """
    try:
        return from_json(content, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        if len(content) > _SECOND_READING_BYTES:
            raise ParameterError(f"the body is not JSON: {error}") from None
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise ParameterError(f"{_NO_UTF_8}: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ParameterError("the body is nested too deeply") from None
    except ValueError as error:
        raise ParameterError(f"the body is not JSON: {error}") from None
