from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from pages.palette import DARK, LIGHT
from serving.access.keys import ApiKey, digest_of
from serving.access.settings import AccessSettings
from serving.api.page import POLICY, page_files
from serving.fake import FakeClient
from serving.protocol import ModelCard

ROOT = Path(__file__).parents[3]
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FILES = sorted(name for name in page_files() if name != "index.html")


def test_a_browser_gets_the_page_and_a_program_the_places(api: Any) -> None:
    shown = api.get("/", headers=HTML)
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert shown.headers["content-security-policy"] == POLICY
    assert api.get("/").headers["content-type"] == "application/json"
    assert shown.headers["vary"] == api.get("/").headers["vary"] == "Accept"


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_as_what_it_is_and_not_sent_twice(api: Any, name: str) -> None:
    response = api.get(f"/page/{name}")
    kinds = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".png": "image/png"}
    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == kinds[Path(name).suffix]
    assert response.headers["x-content-type-options"] == "nosniff"
    again = api.get(f"/page/{name}", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "../page.py", "..%2fapi%2fpage.py", ""])
def test_what_is_no_file_of_the_page_is_a_404(api: Any, name: str) -> None:
    assert api.get(f"/page/{name}").status_code == 404


def test_no_file_holds_an_inline_script_or_style_or_an_address_elsewhere() -> None:
    for name, file in page_files().items():
        if name.endswith(".png"):
            continue
        text = file.content.decode().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|@import|\beval\(|innerHTML|document\.write", text), name
    index = page_files()["index.html"].content.decode()
    assert not re.search(r"<style|\bstyle=|\son\w+=|<script(?![^>]*\bsrc=)", index)
    assert "'unsafe" not in POLICY


def test_the_style_names_only_colours_of_the_palette_and_its_own() -> None:
    sheets = {name: file.content.decode() for name, file in page_files().items() if name.endswith(".css")}
    style = "".join(text for name, text in sheets.items() if name != "palette.css")
    own = set(re.findall(r"--([\w-]+):", style))
    assert set(re.findall(r"var\(--([\w-]+)\)", style)) <= LIGHT.keys() | own
    assert LIGHT["ink"] in sheets["palette.css"]
    assert DARK["ink"] in sheets["palette.css"]


def test_every_file_that_is_named_is_there() -> None:
    files = page_files()
    scripts = "".join(file.content.decode() for name, file in files.items() if name.endswith(".js"))
    index = files["index.html"].content.decode()
    assert set(re.findall(r'(?:href|src)="page/([\w./]+)"', index)) <= files.keys()
    assert {f"{name}.js" for name in re.findall(r'from "\./(\w+)\.js"', scripts)} <= files.keys()
    assert {f"samples/{name}" for name in re.findall(r'"(\w+\.png)"', scripts)} <= files.keys()


def test_the_samples_are_those_of_the_reference_models() -> None:
    """A copy, since a server has no `reference` folder."""
    for name, file in page_files().items():
        if name.startswith("samples/"):
            assert file.content == (ROOT / "reference" / name).read_bytes(), name


def test_the_page_is_open_where_keys_are_asked_for_since_it_asks_itself(make_caller: Any) -> None:
    access = AccessSettings(keys=(ApiKey(name="own", sha256=digest_of(b"key-0123456789")),))
    api = make_caller(access=access)
    assert [api.get(path, headers=HTML).status_code for path in ("/", "/page/app.js", "/v1/models")] == [200, 200, 401]
    assert api.post("/page/app.js", {}).status_code == 401


def commands(page: str) -> list[tuple[str, Any]]:
    """The path and the body of each command of a page, as a shell reads them."""
    found = [shlex.split(html.unescape(text)) for text in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)]
    return [(words[2].removeprefix("http://test"), json.loads(words[-1])) for words in found]


def test_without_javascript_it_tells_how_to_ask_and_the_commands_work(api: Any) -> None:
    told = commands(api.get("/", headers=HTML).text)
    assert [path for path, _ in told] == ["/v1/chat/completions", "/v1/classify"]
    assert [api.post(path, body).status_code for path, body in told] == [200, 200]


def test_without_javascript_and_models_it_tells_how_to_wait(
    api: Any, engine: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none_yet() -> list[ModelCard]:
        return []

    monkeypatch.setattr(engine, "models", none_yet)
    page = api.get("/", headers=HTML).text
    assert commands(page) == []
    assert "http://test/health/ready" in page


def test_a_hosts_name_cannot_write_into_the_page(api: Any) -> None:
    page = api.get("/", headers={**HTML, "Host": 'x"><script>alert(1)</script>'}).text
    assert "<script>alert" not in page
