"""The key that a request came with."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Scope

_BEARER = "bearer "


def key_of(scope: Scope) -> bytes:
    """Return the key that a request came with: as OpenAI's clients send it, or Anthropic's; empty where none is."""
    headers = Headers(scope=scope)
    scheme = headers.get("authorization", "")
    if scheme[: len(_BEARER)].lower() == _BEARER:
        return scheme[len(_BEARER) :].strip().encode("latin-1")
    return headers.get("x-api-key", "").strip().encode("latin-1")
