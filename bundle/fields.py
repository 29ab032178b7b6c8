"""What the fields of a bundle's files may hold."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_NAME_CHARACTERS = 200
MOST_TEXT_CHARACTERS = 10_000


def check_text(text: str) -> str:
    """Return a text that is shown as it is.

    Raises:
        ValueError: It is too long, or holds what is not printed.
    """
    if len(text) > MOST_TEXT_CHARACTERS or not text.isprintable():
        raise ValueError(f"{text[:MOST_NAME_CHARACTERS]!r} holds characters that are not printed, or too many")
    return text


def _check_lines(text: str) -> str:
    for line in text.split("\n"):
        check_text(line)
    return text


Text: TypeAlias = Annotated[str, AfterValidator(check_text)]
"""A text that is shown as it is."""
Lines: TypeAlias = Annotated[str, Field(max_length=1 << 20), AfterValidator(_check_lines)]
"""Lines of such text."""
TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 31)]


class Frozen(BaseModel):
    """A part of `manifest.json`."""

    # a measured NaN is written as such: null would be refused when the manifest is read back
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="strings")
