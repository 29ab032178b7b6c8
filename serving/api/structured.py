"""What an answer shall be, in the three spellings that clients use: OpenAI's `response_format`, and vLLM's two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from bundle.errors import ParameterError
from serving.api.fields import Strict, Text, at_most, check_json
from serving.protocol import Structure

_MOST_CHOICES = 1024

Kind = Literal["json", "regex", "choice", "grammar"]


def _check_schema(value: Any) -> Any:
    if isinstance(value, str):  # vLLM takes the text of a schema too
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise PydanticCustomError("schema_text", "not the text of a JSON schema") from error
    if not isinstance(value, dict):
        raise PydanticCustomError("schema", "a JSON schema must be an object")
    return check_json(value)


JsonSchema = Annotated[dict[str, Any], BeforeValidator(_check_schema)]
GuidedJson = JsonSchema
GuidedChoice = Annotated[
    list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, fail_fast=True), at_most(_MOST_CHOICES, "choices")
]


class TextFormat(Strict):
    """Whatever the model says."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema; it is always followed, `strict` or not."""

    name: Annotated[Text, Field(max_length=64)]
    description: Text | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """A JSON value of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Strict):
    """What an answer shall be, as vLLM writes it: one of the four, or `json_object` for any JSON object."""

    json_: JsonSchema | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Text | None = None
    choice: GuidedChoice | None = None
    grammar: Text | None = None


def structure_of(
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None,
    structured: StructuredOutputs | None,
    guided: Mapping[str, Any],
) -> Structure | None:
    """Return what the answer shall be; None where a request leaves that open.

    Args:
        response_format: OpenAI's field.
        structured: vLLM's field.
        guided: vLLM's older fields, by kind.

    Raises:
        ParameterError: A request says it twice, or `structured_outputs` says nothing.
    """
    found = [*_of_format(response_format), *_of_structured(structured)]
    found += [_structure(kind, value, f"guided_{kind}") for kind, value in guided.items()]
    if len(found) > 1:
        names = " and ".join(each.param for each in found)
        raise ParameterError(f"{names} both say what the answer shall be; send one of them", found[1].param)
    return found[0] if found else None


def _of_format(given: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> list[Structure]:
    if isinstance(given, JsonSchemaFormat):
        return [_structure("json", given.json_schema.schema_, "response_format")]
    return [_structure("json", {"type": "object"}, "response_format")] if isinstance(given, JsonObjectFormat) else []


def _of_structured(given: StructuredOutputs | None) -> list[Structure]:
    if given is None:
        return []
    fields: dict[Kind, Any] = {
        "json": given.json_,
        "regex": given.regex,
        "choice": given.choice,
        "grammar": given.grammar,
    }
    name = "structured_outputs"
    found = [_structure(kind, value, name) for kind, value in fields.items() if value is not None]
    if given.json_object:
        found.append(_structure("json", {"type": "object"}, name))
    if len(found) != 1:
        raise ParameterError(f"{name} must hold one of json, json_object, regex, choice and grammar", name)
    return found


def _structure(kind: Any, value: Any, param: str) -> Structure:
    return Structure(kind, value if isinstance(value, str) else json.dumps(value), param)
