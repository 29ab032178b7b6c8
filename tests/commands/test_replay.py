"""`pocketvlm replay`: recorded requests are asked again."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from serving.access.settings import RecordingSettings
from serving.api.app import create_app
from serving.fake import FakeClient
from serving.settings import ApiSettings

CHAT = "/v1/chat/completions"
LINES = "one\u2028two\x85three"
"""Characters that end lines to some, and stand as they are in JSON."""


def ask(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "fake-vlm", "messages": [{"role": "user", "content": content}], **fields}


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "red.png").write_bytes(buffer.getvalue())
    return buffer.getvalue()


@pytest.fixture
def recorded(tmp_path: Path, png: bytes) -> Path:
    """A folder with a chat, one with an image, and one that was refused."""
    import asyncio

    folder = tmp_path / "recorded"
    app = create_app(FakeClient(), ApiSettings(recording=RecordingSettings(folder=folder)))
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"

    async def send() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for body in (ask(LINES), ask([{"type": "image_url", "image_url": {"url": url}}]), ask("one", top_q=1)):
                await client.post(CHAT, json=body)

    asyncio.run(send())
    app.state.service.recorder.flush()
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, Any]]:
    """What a server in this process was asked; it refuses nothing but unknown fields."""
    asked: list[tuple[str, str | None, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append((request.url.path, request.headers.get("authorization"), body))
        return httpx.Response(400 if "top_q" in body else 200, json={"said": "it"})

    whole = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: whole(**options, transport=httpx.MockTransport(answer)))
    return asked


def test_what_was_recorded_is_asked_again_and_images_are_put_back(
    pocketvlm: Any, recorded: Path, server: Any, tmp_path: Path, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETVLM_KEY", "pvlm-key")
    done = pocketvlm("replay", recorded, "http://server", "--images", tmp_path / "images")
    assert done.returncode == 0, done.stderr
    assert [path for path, _, _ in server] == [CHAT] * 3
    assert {key for _, key, _ in server} == {"Bearer pvlm-key"}
    assert server[0][2]["messages"][0]["content"] == LINES
    url = server[1][2]["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == png
    assert "status 400 then, 400 now" in done.stdout
    assert "3 asked, 0 ended with another status, 0 left out" in done.stdout


def test_what_holds_an_unknown_image_is_left_out(pocketvlm: Any, recorded: Path, server: Any) -> None:
    done = pocketvlm("replay", recorded, "http://server")
    assert "2 asked, 0 ended with another status, 1 left out" in done.stdout
    assert len(server) == 2


def test_another_status_is_told_and_is_the_exit_code(pocketvlm: Any, recorded: Path, server: Any) -> None:
    (file,) = recorded.iterdir()
    file.write_text(file.read_text().replace('"status":200', '"status":503'))
    done = pocketvlm("replay", file, "http://server")
    assert done.returncode == 1
    assert "status 503 then, 200 now" in done.stdout


@pytest.mark.parametrize("text", ["no json\n", "[]\n", '{"status": 200}\n'])
def test_a_file_that_is_no_recording_is_named(pocketvlm: Any, server: Any, tmp_path: Path, text: str) -> None:
    file = tmp_path / "requests-a.jsonl"
    file.write_text(text)
    done = pocketvlm("replay", file, "http://server")
    assert done.returncode == 2
    assert "line 1 is no recorded request" in " ".join(done.stderr.replace("│", " ").split())
    empty = tmp_path / "empty"
    empty.mkdir()
    assert pocketvlm("replay", empty, "http://server").returncode == 2


def test_nobody_who_answers_is_told(pocketvlm: Any, recorded: Path) -> None:
    done = pocketvlm("replay", recorded, "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "does not answer" in done.stderr
