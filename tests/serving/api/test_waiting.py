"""Answers whose model is not there yet: clients that stream are told so, others wait."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from bundle.errors import EngineDeadError
from serving.fake import FakeClient

WAITING = ": fake-vlm is being loaded\n\n"
CHAT = {"model": "fake-vlm", "messages": [{"role": "user", "content": "hello there"}]}
ROUTES = pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "fake-vlm", "prompt": "hello there"}),
        ("/v1/responses", {"model": "fake-vlm", "input": "hello there"}),
        ("/v1/messages", {**CHAT, "max_tokens": 20}),
    ],
    ids=["chat", "completion", "response", "message"],
)


@ROUTES
def test_a_stream_begins_with_comments_and_is_what_it_would_have_been(
    api: Any, engine: FakeClient, path: str, body: dict[str, Any]
) -> None:
    engine.behaviour.num_waits = 2
    waited = api.post(path, {**body, "stream": True}).text
    assert waited.startswith(WAITING * 2)
    assert ": fake-vlm" not in waited.removeprefix(WAITING * 2)
    assert "hello" in waited


@ROUTES
def test_a_whole_answer_is_what_it_would_have_been(
    api: Any, engine: FakeClient, path: str, body: dict[str, Any]
) -> None:
    plain = api.post(path, body)
    engine.behaviour.num_waits = 2
    waited = api.post(path, body)
    assert (waited.status_code, plain.status_code) == (200, 200)
    assert ("hello" in waited.text, "loaded" in waited.text) == (True, False)


def test_a_model_that_never_comes_ends_the_stream_in_an_error(api: Any, engine: FakeClient, read_events: Any) -> None:
    engine.behaviour.num_waits, engine.behaviour.failure = 1, EngineDeadError("nothing came")
    found = api.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert found.status_code == 200
    error, done = read_events(found.text.removeprefix(WAITING))
    assert (error["error"]["code"], done) == ("engine_dead", "[DONE]")


def test_openais_client_reads_over_the_comments(server_url: str, engine: FakeClient) -> None:
    engine.behaviour.num_waits = 3
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        chunks = list(client.chat.completions.create(**CHAT, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "0 images. hello there"


def test_the_first_token_is_counted_when_it_comes(api: Any, engine: FakeClient) -> None:
    engine.behaviour.num_waits, engine.behaviour.first_token_s = 1, 0.2
    api.post("/v1/chat/completions", {**CHAT, "stream": True})
    lines = api.get("/metrics").text.splitlines()
    told = 'pocketvlm:time_to_first_token_seconds_sum{model_name="fake-vlm"}'
    (total,) = (line for line in lines if line.startswith(told))
    assert float(total.split()[-1]) >= 0.2
