"""A client that goes away, on real sockets: its work stops, and nobody else's."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from bundle.errors import EngineDeadError
from serving.api.app import create_app
from serving.api.disconnect import finish_within
from serving.fake import FakeClient
from serving.settings import ApiSettings

CHAT = "/v1/chat/completions"
PATIENCE_S = 20.0  # far more than an idle machine needs, far less than the answers below take


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_work_stops_when_the_client_leaves_before_the_first_token(
    server_url: str, engine: FakeClient, ask: Callable[..., Any], stream: bool
) -> None:
    engine.behaviour.first_token_s = 60
    connection = http.client.HTTPConnection(server_url.removeprefix("http://"))
    connection.request("POST", CHAT, json.dumps(ask(stream=stream)), {"Content-Type": "application/json"})
    wait_until(lambda: engine.num_running == 1)
    connection.close()
    wait_until(lambda: engine.num_running == 0)
    assert engine.cancelled == [engine.generations[0].request_id]


def test_work_stops_when_the_client_leaves_a_stream(
    server_url: str, engine: FakeClient, ask: Callable[..., Any]
) -> None:
    engine.behaviour.token_s = 60
    with httpx.stream("POST", server_url + CHAT, json=ask(stream=True)) as response:
        lines = response.iter_lines()  # kept: a dropped iterator closes the connection
        next(lines)
        assert engine.num_running == 1
    wait_until(lambda: engine.num_running == 0)
    assert len(engine.cancelled) == 1
    counted = 'pocketvlm:request_success_total{finished_reason="abort",model_name="fake-vlm"} 1.0'
    wait_until(lambda: counted in httpx.get(f"{server_url}/metrics").text)  # a moment after the engine let go


@pytest.mark.parametrize("num_turns", range(3))
def test_a_cancellation_that_meets_the_end_of_a_send_is_kept(num_turns: int) -> None:
    """A client that leaves in the moment in which a piece was taken: asyncio.wait_for of Python 3.11 would go on."""

    async def main() -> None:
        room = asyncio.Event()
        sending = asyncio.create_task(finish_within(60, room.wait()))
        await asyncio.sleep(0.01)
        room.set()
        for _ in range(num_turns):  # of the loop, after which it has ended more and more
            await asyncio.sleep(0)
        if sending.cancel():  # it had not ended, so it ends so
            with pytest.raises(asyncio.CancelledError):
                await sending
        else:
            assert num_turns > 0
            await sending

    asyncio.run(main())


def test_work_that_takes_too_long_is_cancelled_and_told() -> None:
    ends = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ends.append("cancelled")

    async def main() -> str:
        with pytest.raises(asyncio.TimeoutError):
            await finish_within(0.01, work())
        return await finish_within(60, asyncio.sleep(0, "the next is not touched by it"))

    assert asyncio.run(main()) == "the next is not touched by it"
    assert ends == ["cancelled"]


def test_an_embedding_stops_when_the_client_leaves(server_url: str, engine: FakeClient) -> None:
    engine.behaviour.first_token_s = 60
    connection = http.client.HTTPConnection(server_url.removeprefix("http://"))
    body = json.dumps({"model": "fake-clip", "input": "a"})
    connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    wait_until(lambda: engine.num_running == 1)
    connection.close()
    wait_until(lambda: engine.num_running == 0)


def test_a_finished_answer_is_not_cancelled(server_url: str, engine: FakeClient, ask: Callable[..., Any]) -> None:
    for stream in (False, True):
        assert httpx.post(server_url + CHAT, json=ask(stream=stream)).status_code == 200
    assert engine.cancelled == []
    assert engine.num_running == 0


def stream_to_a_client_that_stops_reading_at(mark: bytes, engine: FakeClient, body: Any) -> str:
    """Serve one stream until its client is given up, and return the metrics."""
    app = create_app(engine, ApiSettings(stalled_client_s=0.1))
    messages = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}

    async def receive() -> Any:
        return next(messages, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if mark in message.get("body", b""):
            await asyncio.Event().wait()

    async def main() -> str:
        await asyncio.wait_for(app(scope, receive, send), PATIENCE_S)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.get("/metrics")).text

    return asyncio.run(main())


def test_a_client_that_stops_reading_loses_its_place(engine: FakeClient, ask: Callable[..., Any]) -> None:
    metrics = stream_to_a_client_that_stops_reading_at(b"assistant", engine, ask(stream=True))
    assert engine.num_running == 0
    assert len(engine.cancelled) == 1
    assert 'request_success_total{finished_reason="abort",model_name="fake-vlm"} 1.0' in metrics


def test_a_client_that_leaves_after_the_end_is_counted_once(engine: FakeClient, ask: Callable[..., Any]) -> None:
    metrics = stream_to_a_client_that_stops_reading_at(b'"finish_reason":"stop"', engine, ask(stream=True))
    assert 'request_success_total{finished_reason="stop",model_name="fake-vlm"} 1.0' in metrics
    assert 'request_success_total{finished_reason="abort",model_name="fake-vlm"} 0.0' in metrics


def test_a_client_that_leaves_after_a_failure_is_counted_once(engine: FakeClient, ask: Callable[..., Any]) -> None:
    engine.behaviour.failure, engine.behaviour.failure_after_tokens = EngineDeadError("worker died"), 1
    metrics = stream_to_a_client_that_stops_reading_at(b'"error"', engine, ask("a b", stream=True))
    assert 'request_errors_total{error_type="engine_dead",model_name="fake-vlm"} 1.0' in metrics
    assert 'request_success_total{finished_reason="abort",model_name="fake-vlm"} 0.0' in metrics
