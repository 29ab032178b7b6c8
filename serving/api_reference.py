"""`python -m serving.api_reference docs/api-reference.md`: routes, bodies and answers as a page, from their schemas.

Without a file it goes to standard output. What a running server takes is in its own `/openapi.json`, with its limits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.api.app import create_app
from serving.fake import FakeClient
from serving.settings import ApiSettings

COMMAND = "python -m serving.api_reference docs/api-reference.md"
_HEAD = f"""# API reference

Every route, body and answer, written by `{COMMAND}`
from the schemas that the server holds requests to. What they mean together is in [api.md](api.md), how clients send
them in [clients.md](clients.md). Fields without a default are required; a field that is not here is refused by name.
"Takes only" lists fields of other servers that are taken with a value that changes nothing. `/v1/prefixes` and
`/v1/cache/clear` are there where a setting allows them; a server's limits are in its `/openapi.json`.
"""
_UNBUILT = "Not supported: taken where it changes nothing."
_STREAM = "text/event-stream"
_HEALTH = "/health/"
"""Routes whose statuses are their answer."""


def reference() -> str:
    """Return the whole page, in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ApiSettings(prefix_folder=Path(folder))
        document = create_app(FakeClient(), settings, clear_caches=_nothing).openapi()
    schemas = document["components"]["schemas"]
    operations = [
        (path, method, each) for path, methods in document["paths"].items() for method, each in methods.items()
    ]
    lines = [_HEAD, "## Statuses", *_statuses([each for path, _, each in operations if not path.startswith(_HEALTH)])]
    lines.append("## Routes")
    for path, method, operation in operations:
        lines += _route(path, method, operation)
    lines.append("## Schemas")
    for name in sorted(schemas):
        lines += _schema(name, schemas[name])
    return "\n".join(lines) + "\n"


def _nothing() -> None:
    """Clear no caches: the route is only described."""


def _statuses(operations: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what each status means."""
    told = {
        status: response["description"]
        for operation in operations
        for status, response in operation["responses"].items()
    }
    yield "| status | |\n|---|---|"
    yield from (f"| {status} | {told[status]} |" for status in sorted(told))
    yield ""


def _route(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} {path}"
    yield operation["description"].strip()
    if body := operation.get("requestBody"):
        yield f"- body: {_type(body['content']['application/json']['schema'])}"
    for status, response in operation["responses"].items():
        if status == "200":
            yield f"- 200: {_contents(response['content'])}"
    if others := [status for status in operation["responses"] if status != "200"]:
        yield f"- else: {', '.join(others)}"
    yield ""


def _contents(contents: dict[str, Any]) -> str:
    told = [_type(content["schema"]) for kind, content in contents.items() if kind != _STREAM]
    events = [
        f"streamed, events of {_type(content['schema'])}" for kind, content in contents.items() if kind == _STREAM
    ]
    return "; ".join(told + events)


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}"
    if told := schema.get("description"):
        yield " ".join(told.split()) + "\n"
    required = set(schema.get("required", ()))
    fields = schema.get("properties", {})
    taken = {field: each for field, each in fields.items() if each.get("description") == _UNBUILT}
    if len(fields) > len(taken):
        yield "| field | is | default |\n|---|---|---|"
    for field, each in fields.items():
        if field not in taken:
            default = "" if field in required else f"`{json.dumps(each.get('default'))}`"
            yield f"| `{field}` | {_type(each)} | {default} |"
    if taken:
        told = ", ".join(f"`{field}` {_type(each)}" for field, each in taken.items())
        yield f"\nTakes only: {told}."
    if not fields:
        yield _type(schema)
    yield ""


def _type(schema: dict[str, Any]) -> str:
    """Return what a value may be, in words that a cell of a table holds."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(each)}`" for each in schema["enum"])
    if kinds := schema.get("anyOf") or schema.get("oneOf"):
        told = dict.fromkeys(_type(each) for each in kinds if each.get("type") != "null")
        return " or ".join(told)
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}{_range(schema, 'minItems', 'maxItems', ' of them')}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"object of {_type(values)}" if isinstance(values, dict) and values else "object"
    if kind == "string":
        return f"string{_range(schema, 'minLength', 'maxLength', ' characters')}"
    return f"{kind}{_range(schema, 'minimum', 'maximum')}{_bounds(schema)}"


def _range(schema: dict[str, Any], least: str, most: str, noun: str = "") -> str:
    low, high = schema.get(least), schema.get(most)
    if low is not None and high is not None:
        return f", {low} to {high}{noun}"
    if low is not None:
        return f", {low} or more{noun}"
    return "" if high is None else f", at most {high}{noun}"


def _bounds(schema: dict[str, Any]) -> str:
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    told = "" if above is None else f", above {above:g}"
    return told if below is None else f"{told}, below {below:g}"


def main() -> None:
    """Write the page into the file that is named, or on standard output."""
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
    else:
        sys.stdout.write(reference())


if __name__ == "__main__":
    main()
