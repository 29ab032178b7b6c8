"""Every request has a deadline; its client may ask for an earlier one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from serving.fake import FakeClient

CHAT = "/v1/chat/completions"
TIMEOUT = "X-Request-Timeout"
PATIENCE_S = 20.0  # far more than a busy machine needs, far less than the answers below take


def test_an_answer_that_is_late_is_stopped_and_told(
    make_caller: Any, engine: FakeClient, ask: Callable[..., Any]
) -> None:
    engine.behaviour.token_s = 60
    started_s = time.monotonic()
    response = make_caller(request_timeout_s=0.3).post(CHAT, ask())
    assert time.monotonic() - started_s < PATIENCE_S
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert "within 0.3 s" in response.json()["error"]["message"]
    assert (engine.num_running, len(engine.cancelled)) == (0, 1)


def test_a_stream_that_is_late_ends_with_an_error_and_its_closing_event(
    make_caller: Any, engine: FakeClient, ask: Callable[..., Any], read_events: Callable[[str], list[Any]]
) -> None:
    engine.behaviour.token_s = 60
    response = make_caller(request_timeout_s=0.3).post(CHAT, ask(stream=True))
    *begun, error, last = read_events(response.text)
    assert response.status_code == 200
    assert begun[1]["choices"][0]["delta"] == {"content": "0"}
    assert (error["error"]["code"], last) == ("deadline_exceeded", "[DONE]")
    assert engine.num_running == 0


def test_a_stream_that_is_late_before_its_first_token_has_a_status_of_its_own(
    make_caller: Any, engine: FakeClient, ask: Callable[..., Any]
) -> None:
    engine.behaviour.first_token_s = 60
    assert make_caller(request_timeout_s=0.3).post(CHAT, ask(stream=True)).status_code == 504
    assert engine.num_running == 0


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classify"])
def test_what_is_answered_in_one_piece_has_a_deadline_too(
    make_caller: Any, engine: FakeClient, png: bytes, image_part: Any, path: str
) -> None:
    engine.behaviour.first_token_s = 60
    fields = {"input": "a"} if "embeddings" in path else {"images": [image_part(png)], "labels": ["a"]}
    assert make_caller(request_timeout_s=0.3).post(path, {"model": "fake-clip", **fields}).status_code == 504
    assert engine.num_running == 0


def test_a_client_may_ask_for_an_earlier_deadline(api: Any, engine: FakeClient, ask: Callable[..., Any]) -> None:
    engine.behaviour.token_s = 60
    response = api.post(CHAT, ask(), headers={TIMEOUT: "0.3"})
    assert response.status_code == 504
    assert "within 0.3 s" in response.json()["error"]["message"]


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf", "601", "5s", ""])
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/v1/classify"])
def test_a_deadline_that_cannot_be_is_refused_by_the_headers_name(api: Any, path: str, text: str) -> None:
    response = api.post(path, {}, headers={TIMEOUT: text})
    assert (response.status_code, response.json()["error"]["param"]) == (400, TIMEOUT)
    assert "at most 600" in response.json()["error"]["message"]


def test_the_servers_own_deadline_may_be_asked_for(api: Any, ask: Callable[..., Any]) -> None:
    assert api.post(CHAT, ask(), headers={TIMEOUT: "600"}).status_code == 200
