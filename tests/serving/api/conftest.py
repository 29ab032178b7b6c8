"""The application over a fake engine, called in process or over a real socket."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from serving.api.app import create_app
from serving.fake import FakeClient
from serving.settings import ApiSettings

Body = dict[str, Any]


class Caller:
    """Sends requests to an application in this process, each on an event loop of its own."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())


@pytest.fixture
def engine() -> FakeClient:
    return FakeClient()


@pytest.fixture
def make_caller(engine: FakeClient) -> Callable[..., Caller]:
    """Make a caller of an application with given limits, and the route that clears caches where it is told how."""
    return lambda clear_caches=None, **limits: Caller(create_app(engine, ApiSettings(**limits), clear_caches))


@pytest.fixture
def api(make_caller: Callable[..., Caller]) -> Caller:
    return make_caller()


@pytest.fixture
def server_url(engine: FakeClient, serve_edge: Callable[..., Any]) -> str:
    """URL of a real server on a free port."""
    return serve_edge(engine)


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="session")
def png() -> bytes:
    """An 8x8 red PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def image_part() -> Callable[[bytes], Body]:
    """Encoded image bytes to a content part."""
    return lambda data: {"type": "image_url", "image_url": {"url": data_url(data)}}


@pytest.fixture
def ask() -> Callable[..., Body]:
    """A chat body: the content of one user message, and more fields."""

    def body(content: Any = "hello there", **fields: Any) -> Body:
        return {"model": "fake-vlm", "messages": [{"role": "user", "content": content}], **fields}

    return body


@pytest.fixture(scope="session")
def read_events() -> Callable[[str], list[Any]]:
    """The data of each server-sent event: parsed JSON, or the text of the closing one."""

    def read(text: str) -> list[Any]:
        blocks = text.removesuffix("\n\n").split("\n\n")
        data = [block.removeprefix("data: ") for block in blocks]
        return [piece if piece == "[DONE]" else json.loads(piece) for piece in data]

    return read
