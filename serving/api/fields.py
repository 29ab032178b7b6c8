"""What schemas of request bodies are made of: strict objects, counted lists, whole texts, fields that are not built."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from typing_extensions import Self

MOST_LEVELS = 100
"""Of objects and lists within each other, in a value of any form: templates, pydantic and JSON's writers walk them by
recursion."""


class Strict(BaseModel):
    """A body, or an object within one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_the_first_unknown_field(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Pydantic would make an error of each, at a kilobyte apiece.
        known = _known_fields(cls)
        unknown = next((name for name in value if name not in known), None) if type(value) is dict else None
        if unknown is None:
            return handler(_without_nulls(cls, value))
        handler({name: each for name, each in value.items() if name in known})  # tells more where it fails
        # In a tuple, for pydantic would encode a bare text, and half a surrogate pair cannot be.
        raise PydanticCustomError(
            "unknown_field", "this field is unknown or not supported; remove it", {"path": (unknown,)}
        )


@cache
def _known_fields(schema: type[BaseModel]) -> frozenset[str]:
    """Return what a schema's fields are called in JSON."""
    return frozenset(field.alias or name for name, field in schema.model_fields.items())


def _without_nulls(schema: type[BaseModel], value: Any) -> Any:
    """Return an object without nulls in the place of defaults: clients write null for a field that they leave open."""
    if type(value) is not dict:
        return value
    nulls = {name for name in _defaulted_fields(schema) if value.get(name, name) is None}
    return {name: each for name, each in value.items() if name not in nulls} if nulls else value


@cache
def _defaulted_fields(schema: type[BaseModel]) -> frozenset[str]:
    """Return what a schema's fields with a default other than null are called in JSON."""
    fields = {field.alias or name: field for name, field in schema.model_fields.items()}
    return frozenset(name for name, field in fields.items() if not field.is_required() and field.default is not None)


def limit_of(info: ValidationInfo, name: str) -> int:
    """Return a limit of the `ApiSettings` that a body is validated with."""
    return int(getattr(info.context, name))


def at_most(limit: str | int, noun: str) -> BeforeValidator:
    """Return what counts a list or object before its items are looked at: to a number or a limit of `ApiSettings`."""

    def count(value: Any, info: ValidationInfo) -> Any:
        most = limit if isinstance(limit, int) else limit_of(info, limit)
        if isinstance(value, (list, dict)) and len(value) > most:
            context = {"count": len(value), "noun": noun, "most": most}
            raise PydanticCustomError("too_many", "{count} {noun}; one request may hold {most}", context)
        return value

    return BeforeValidator(count)


@dataclass(frozen=True)
class Unbuilt:
    """The type of a field that is not built: it may be null, or have a value that changes nothing.

    Attributes:
        neutral: Those values.
    """

    neutral: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Take the neutral values as null."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe them."""
        return {"enum": [None, *self.neutral], "description": "Not supported: taken where it changes nothing."}

    def _check(self, value: Any) -> None:
        # True equals 1 in Python, and is no number.
        if value is not None and not any(value == each and type(value) is type(each) for each in self.neutral):
            raise PydanticCustomError("unsupported", "not supported; leave it out")


Off = Annotated[Any, Unbuilt()]
OffOrFalse = Annotated[Any, Unbuilt((False,))]
OffOrEmptyList = Annotated[Any, Unbuilt(([],))]
OffOrEmptyObject = Annotated[Any, Unbuilt(({},))]
OffOrZero = Annotated[Any, Unbuilt((0, 0.0))]
OffOrOne = Annotated[Any, Unbuilt((1, 1.0))]


def _whole_characters(text: str, info: ValidationInfo) -> str:
    """Refuse a text that no model holds, and half a surrogate pair, which JSON can write and no encoding can."""
    if len(text) > (most := limit_of(info, "max_text_characters")):
        context = {"count": len(text), "noun": "characters", "most": most}
        raise PydanticCustomError("too_many", "{count} {noun}; one text may hold {most}", context)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("unicode", "a lone surrogate is no character; send valid Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Name = Annotated[Text, Field(max_length=256)]


def object_text(value: dict[str, Any]) -> str:
    """Return a JSON object as text that a template can be filled with.

    Raises:
        ValueError: It is nested too deeply, or holds half a surrogate pair or a number that JSON has not.
    """
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inner for each in values if isinstance(each, (dict, list))]
    if level:
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep; send a simpler value")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a lone surrogate is no character; send valid Unicode") from error
    except ValueError as error:
        raise ValueError("NaN, an infinite number or one of thousands of digits cannot be written") from error
    return text


def check_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object of any form, which can be written again."""
    try:
        object_text(value)
    except ValueError as error:
        raise PydanticCustomError("no_json", "{fault}", {"fault": str(error)}) from error
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]
