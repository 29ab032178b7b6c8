"""Functions that a model may call: how a conversation tells of them, in the template's own form or in words of ours.

A model calls by writing JSON between two marks, as Hermes, Qwen2.5 and SmolLM3 were trained to:

    <tool_call>
    {"name": "weather", "arguments": {"city": "Bern"}}
    </tool_call>

A template that reads `tools` and writes that mark tells of them itself. For any other, the system message gets the
signatures and this form, calls are written as text, and results come in a user's turn between <tool_response> marks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CALL_START = "<tool_call>"
CALL_END = "</tool_call>"
# fmt: off
_SCHEMA_WORDS = frozenset((
    "$defs", "$ref", "additionalProperties", "allOf", "anyOf", "array", "boolean", "const", "default", "definitions",
    "description", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "integer", "items", "maxItems",
    "maxLength", "maximum", "minItems", "minLength", "minimum", "multipleOf", "null", "number", "object", "oneOf",
    "pattern", "prefixItems", "properties", "required", "string", "title", "type",
))
# fmt: on
"""A template may ask for them; everything else in a schema is a caller's text."""
_WORDING = """You may call functions:
<tools>
{signatures}
</tools>
To call one, write nothing but its name and arguments, in this form:
{call}"""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: Letters, digits, "_" and "-".
        description: What it does; may be empty.
        parameters: The JSON schema of its arguments, an object, as text.
        is_strict: The arguments must follow the schema; otherwise they do where a server can hold them to it.
    """

    name: str
    description: str
    parameters: str
    is_strict: bool = False


@dataclass(frozen=True)
class ToolCall:
    """A call that a model made.

    Attributes:
        id: Its result is sent back under it.
        name: Of the function.
        arguments: A JSON object, as text.
    """

    id: str
    name: str
    arguments: str

    @property
    def text(self) -> str:
        """The call as a model writes it."""
        name = json.dumps(self.name, ensure_ascii=False)
        return f'{CALL_START}\n{{"name": {name}, "arguments": {self.arguments}}}\n{CALL_END}'


def tools_wording(tools: Sequence[Tool]) -> str:
    """Return what the system message says of functions where the template does not."""
    signatures = "\n".join(json.dumps(tool_value(tool, str), ensure_ascii=False) for tool in tools)
    return _WORDING.format(signatures=signatures, call=ToolCall("", "NAME", '{"ARGUMENT": "VALUE"}').text)


def result_wording(text: str) -> str:
    """Return a function's result as a user's turn tells it where the template has no turns for it."""
    return f"<tool_response>\n{text}\n</tool_response>"


def tool_value(tool: Tool, of_text: Callable[[str], str]) -> dict[str, Any]:
    """Return a function as templates read it.

    Args:
        tool: The function.
        of_text: What stands for each of its texts.
    """
    function = {
        "name": of_text(tool.name),
        "description": of_text(tool.description),
        "parameters": _told(json.loads(tool.parameters), of_text),
    }
    return {"type": "function", "function": function}


def call_value(call: ToolCall, of_text: Callable[[str], str]) -> dict[str, Any]:
    """Return a call as templates read it, its texts replaced as in `tool_value`."""
    arguments = _told(json.loads(call.arguments), of_text)
    return {"type": "function", "function": {"name": of_text(call.name), "arguments": arguments}}


def _told(value: Any, of_text: Callable[[str], str]) -> Any:
    """Return a JSON value with its texts replaced, names of members among them."""
    if isinstance(value, str):
        return value if value in _SCHEMA_WORDS else of_text(value)
    if isinstance(value, list):
        return [_told(each, of_text) for each in value]
    if isinstance(value, dict):
        return {name if name in _SCHEMA_WORDS else of_text(name): _told(each, of_text) for name, each in value.items()}
    return value
