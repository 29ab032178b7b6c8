"""The line that the log gets of a request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from bundle.errors import OverloadedError
from serving.fake import FakeClient

CHAT = "/v1/chat/completions"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines of the access log at the level info."""
    caplog.set_level(logging.INFO, logger="pocketvlm.access")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "pocketvlm.access"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_leaves_one_line_with_what_was_asked_and_what_it_took(
    api: Any, ask: Callable[..., Any], lines: Callable[[], list[str]], stream: bool
) -> None:
    api.post(CHAT, ask(stream=stream), headers={"X-Request-ID": "job-7"})
    (line,) = lines()
    name, _, method, path, *facts = line.split()
    told = dict(fact.split("=") for fact in facts)
    assert (name, method, path) == ("job-7", "POST", CHAT)
    assert (told["model"], told["status"]) == ("fake-vlm", "200")
    assert (told["prompt_tokens"], told["completion_tokens"]) == ("2", "4")
    assert 0 <= float(told["first_token_s"]) <= float(told["total_s"])


def test_embeddings_have_no_first_token(api: Any, lines: Callable[[], list[str]]) -> None:
    api.post("/v1/embeddings", {"model": "fake-clip", "input": "a b"})
    (line,) = lines()
    assert "model=fake-clip status=200 prompt_tokens=2 total_s=" in line


def test_a_refused_request_is_logged_without_what_its_caller_invented(
    api: Any, engine: FakeClient, ask: Callable[..., Any], lines: Callable[[], list[str]]
) -> None:
    api.post(CHAT, ask(model="invented"))
    engine.behaviour.failure = OverloadedError("full")
    api.post(CHAT, ask())
    unknown, full = lines()
    assert "status=404" in unknown
    assert "invented" not in unknown
    assert "model=fake-vlm status=429" in full


def test_probes_and_scrapers_are_no_news(
    api: Any, lines: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        api.get(path)
    assert lines() == []
    caplog.set_level(logging.DEBUG, logger="pocketvlm.access")
    api.get("/health/live")
    assert len(lines()) == 1


def test_a_path_cannot_forge_a_line(server_url: str, lines: Callable[[], list[str]]) -> None:
    httpx.get(server_url + "/a%0Ajob-8%20127.0.0.1%20GET%20/v1/models")
    while not lines():  # it is written a moment after the answer
        time.sleep(0.01)
    (line,) = lines()
    assert "\n" not in line
    assert "/a%0Ajob-8" in line
