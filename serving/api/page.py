"""`GET /`: the page on which a visitor tries the models, and the files that it is made of (serving/page).

Nothing is built and nothing is loaded from elsewhere. The content security policy says so to the browser: no script and
no style but these files, no connection but to this server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from pages.palette import variables
from serving.api.docs import command, examples
from serving.api.service import Service
from serving.protocol import ModelCard

_FOLDER = Path(__file__).parents[1] / "page"
_INDEX = "index.html"
_COMMANDS = "<!--commands-->"
_TOLD_ROUTES = ("/v1/chat/completions", "/v1/classify")
"""Of which the page without JavaScript has a command, where a model is served that answers it."""
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page, as it is sent.

    Attributes:
        content: Its bytes.
        media_type: Of them.
        etag: Changes with the bytes, so that a browser that has them is sent none.
    """

    content: bytes
    media_type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """Return the page's files by their path below `page/`; the style sheet of colours is the reports' own."""
    found = {
        path.relative_to(_FOLDER).as_posix(): _file(path.read_bytes(), path.suffix)
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _MEDIA_TYPES
    }
    return {**found, "palette.css": _file(variables().encode(), ".css")}


def add_page(app: FastAPI, service: Service) -> None:
    """Add the page to an application that has its routes."""
    files = page_files()
    index = files.pop(_INDEX).content.decode()

    @app.head("/", include_in_schema=False)
    @app.get("/", tags=["status"])
    async def welcome(request: Request) -> Response:
        """Tell where to go from here; a browser gets a page to try the models on."""
        if "text/html" in request.headers.get("accept", ""):
            told = index.replace(_COMMANDS, _commands(request, await service.client.models()))
            return Response(told, headers={**_HEADERS, "Vary": "Accept"}, media_type=_MEDIA_TYPES[".html"])
        places = {"models": "/v1/models", "docs": "/docs", "openapi": "/openapi.json"}
        return JSONResponse({"name": app.title, "version": app.version, **places}, headers={"Vary": "Accept"})

    @app.head("/page/{name:path}", include_in_schema=False)
    @app.get("/page/{name:path}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        if (found := files.get(name)) is None:
            raise HTTPException(404, "Not Found")
        headers = {**_HEADERS, "ETag": found.etag}
        if request.headers.get("if-none-match") == found.etag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, headers=headers, media_type=found.media_type)


def _file(content: bytes, suffix: str) -> PageFile:
    return PageFile(content, _MEDIA_TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"')


def _commands(request: Request, cards: Sequence[ModelCard]) -> str:
    """Return what asks the served models from a terminal, as HTML."""
    url = str(request.base_url).rstrip("/")
    bodies = examples(cards)
    served = {card.name for card in cards}
    told = [command(url + path, bodies[path]) for path in _TOLD_ROUTES if bodies[path]["model"] in served]
    return "".join(told) or f"<p>No model is loaded yet. {_health(url)}</p>"


def _health(url: str) -> str:
    return f"Ask again when <code>curl {escape(url)}/health/ready</code> says that it is ready."
