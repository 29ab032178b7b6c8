"""`GET /docs`: the routes on one page that loads nothing from elsewhere, so that it needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from bundle.manifest import ANSWERING_TASKS, EMBEDDING_TASKS, RANKING_TASKS, Task
from pages.frame import page
from serving.api.service import Service
from serving.protocol import ModelCard

RED_CIRCLE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAABlBMVEX/////AADrWueTAAAAg0lEQVR42r3QsQ2DQBQE"
    "0ccHCTJTAu4Ed+QSrwSXQAmEJwtxDpCtC4gcsNFoVtpguTa3jMCzP0RTSgJ9KSvBwEAw0hFMBMFMQ0tCk0IDs/jOx4FTbToYa/ODAYbT6j/IkE+rDdba"
    "7LDUpkDSYuYhSBSChZ1gZSPIZII3L1qY79XPF+QDrEEctGfYTQAAAAAASUVORK5CYII="
)
"""A red circle on white, 64 x 64."""
_IMAGE = {"type": "image_url", "image_url": {"url": RED_CIRCLE}}
_TWO_FRAMES = (
    "data:image/gif;base64,R0lGODlhQABAAIEAAP////8AAAAAAAAAACH/C05FVFNDQVBFMi4wAwEAAAAh+QQAMgAAACwAAAAAQABAAAAIsAABCBxIsKDBgw"
    "gTKlzIsKHDhxAjSpxIsaLFixgzatzIsaPHjyBDihxJsqTJkyhTqlzJsqXLkQFiyoz58uDMmzJrCsTJM6fLnkADtAwadCVRoimPHj2pVKnJpktJQnUKcypSk"
    "VapgswadSvXoiG/gvUqlifWsmbDosV5du3Mqm6FwnVbMu5TunfLJhVrlOtQqy+n6gTQdTDhtIYTK17MuLHjx5AjS55MubLly5gzrwwIACH5BAEyAAIALBEA"
    "EQAeAB4Agf///wAA/wAAAAAAAAgyAAMIHEiwoMGDCBMqXMiwocOHECNKnEixosWLGDNq3Mixo8ePIEOKHEmypMmTKFOeDAgAOw=="
)
"""A red circle and, half a second later, a blue square."""
_UNKNOWN = "MODEL"
_TASKS: dict[str, tuple[Task, ...]] = {
    "/v1/chat/completions": ANSWERING_TASKS,
    "/v1/responses": ANSWERING_TASKS,
    "/v1/messages": ANSWERING_TASKS,
    "/v1/completions": ANSWERING_TASKS,
    "/v1/rerank": RANKING_TASKS,
    "/v1/embeddings": EMBEDDING_TASKS,
    "/v1/classify": ("dual-encoder",),
}


def examples(cards: Sequence[ModelCard]) -> dict[str, dict[str, Any]]:
    """Return a body per route, for the first served model that can answer it, texts too where one does."""
    ordered = sorted(cards, key=lambda card: card.task == "image-embedding")
    ranking = [card.task for card in ordered if card.task in RANKING_TASKS]
    compared = [_IMAGE] if ranking[:1] == ["image-embedding"] else ["a red circle", "a blue square"]

    def model(path: str) -> str:
        return next((card.name for card in ordered if card.task in _TASKS[path]), _UNKNOWN)

    asked = {"role": "user", "content": [_IMAGE, {"type": "text", "text": "What color is the circle?"}]}
    fields: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [asked], "max_tokens": 64, "stream": True},
        "/v1/responses": {"input": "What is a circle?", "max_output_tokens": 64},
        "/v1/messages": {"messages": [{"role": "user", "content": "What is a circle?"}], "max_tokens": 64},
        "/v1/completions": {"prompt": "A circle is", "max_tokens": 16},
        "/v1/rerank": {"query": _IMAGE, "documents": compared},
        "/v1/embeddings": {"input": [compared[0], _IMAGE]},
        "/v1/classify": {"images": [_IMAGE], "labels": ["a red circle", "a blue square"]},
    }
    return {path: {"model": model(path), **rest} for path, rest in fields.items()}


def video_example(chat: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a chat about a video, made of the one about an image."""
    video = {"type": "video_url", "video_url": {"url": _TWO_FRAMES}}
    asked = {"role": "user", "content": [video, {"type": "text", "text": "What shape is blue?"}]}
    return {**chat, "messages": [asked], "video": {"num_frames": 2, "layout": "uniform"}}


def structure_example(chat: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a chat whose answer is held to a JSON schema."""
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "green", "blue"]}, "count": {"type": "integer", "maximum": 9}},
        "required": ["color", "count"],
        "additionalProperties": False,
    }
    told = {"type": "json_schema", "json_schema": {"name": "circles", "schema": schema}}
    return {**chat, "stream": False, "response_format": told}


def tools_example(chat: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a chat that has to call a function."""
    parameters = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"]}
    tool = {"type": "function", "function": {"name": "note", "parameters": parameters}}
    return {**chat, "stream": False, "max_tokens": 200, "tools": [tool], "tool_choice": "required"}


def add_docs(app: FastAPI, service: Service) -> None:
    """Add the page to an application that has its routes."""

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        cards = await service.client.models()
        return HTMLResponse(_page(app.openapi(), str(request.base_url).rstrip("/"), cards))


def _page(schema: dict[str, Any], url: str, cards: Sequence[ModelCard]) -> str:
    title = f"{schema['info']['title']} {schema['info']['version']}"
    intro = (
        "Point any OpenAI client at <code>/v1</code>, and Anthropic's at the server itself. Every field, status and "
        "limit is in"
    )
    link = '<a href="openapi.json">openapi.json</a>.'
    served = ", ".join(f"<code>{escape(card.name)}</code>" for card in cards) or "none yet"
    head = f"<h1>{escape(title)}</h1><p>{intro} {link}</p><p>Models served: {served}.</p>"
    return page(title, head + "".join(_operations(schema, url, examples(cards))))


def _operations(schema: dict[str, Any], url: str, bodies: dict[str, dict[str, Any]]) -> Iterator[str]:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['description'])}</p>"
            if path in bodies:
                yield command(url + path, bodies[path])
            if path == "/v1/chat/completions":
                yield "<p>About a video, which may be a GIF, a WebP, an MP4 or a list of frames:</p>"
                yield command(url + path, video_example(bodies[path]))
                yield "<p>For a JSON value of a schema; regular expressions, choices and grammars are taken too:</p>"
                yield command(url + path, structure_example(bodies[path]))
                yield "<p>With a function that the model has to call:</p>"
                yield command(url + path, tools_example(bodies[path]))


def command(address: str, body: dict[str, Any]) -> str:
    """Return what can be pasted into a terminal."""
    command = f"curl -N {address} -H 'Content-Type: application/json' -d '{json.dumps(body, indent=2)}'"
    return f'<pre tabindex="0">{escape(command, quote=False)}</pre>'
