"""`GET /docs`: the routes on one page that loads nothing from elsewhere, for machines without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from pages.frame import page

EXAMPLES = {
    "/v1/chat/completions": {
        "model": "MODEL",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
                    {"type": "text", "text": "What is this?"},
                ],
            }
        ],
        "max_tokens": 64,
        "stream": True,
    },
    "/v1/embeddings": {
        "model": "MODEL",
        "input": ["a red circle", {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}],
    },
    "/v1/classify": {
        "model": "MODEL",
        "images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}],
        "labels": ["circle", "square"],
    },
}
"""A body per route; a test sends each with a real image."""


def add_docs(app: FastAPI) -> None:
    """Add the page to an application that has its routes."""

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(_page(app.openapi(), str(request.base_url).rstrip("/")))


def _page(schema: dict[str, Any], url: str) -> str:
    title = f"{schema['info']['title']} {schema['info']['version']}"
    intro = "OpenAI-compatible: point any OpenAI client at <code>/v1</code>. Every field and limit is in"
    link = '<a href="openapi.json">openapi.json</a>.'
    return page(title, f"<h1>{escape(title)}</h1><p>{intro} {link}</p>{''.join(_operations(schema, url))}")


def _operations(schema: dict[str, Any], url: str) -> Iterator[str]:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['description'])}</p>"
            if path in EXAMPLES:
                example = json.dumps(EXAMPLES[path], indent=2)
                command = f"curl {url + path} -H 'Content-Type: application/json' -d '{example}'"
                yield f'<pre tabindex="0">{escape(command, quote=False)}</pre>'
