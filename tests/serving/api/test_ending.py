"""Whatever ends a request: one answer, of the API's own form."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from bundle.errors import EngineDeadError, OutOfMemoryError
from serving.api.app import create_app
from serving.fake import FakeClient
from serving.settings import ApiSettings

CHAT = "/v1/chat/completions"


class PanicError(BaseException):
    """As libraries in Rust raise it: no Exception."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", [PanicError("at the disco"), SystemExit(3), RuntimeError("a bug")])
def test_a_fault_that_nobody_expected_is_a_500_that_keeps_its_text_to_itself(
    api: Any,
    engine: FakeClient,
    ask: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    stream: bool,
    failure: BaseException,
) -> None:
    engine.behaviour.failure = failure
    response = api.post(CHAT, ask(stream=stream))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "disco" not in response.text
    assert response.headers["x-request-id"]
    assert "internal" in api.get("/metrics").text
    assert sum(record.exc_info is not None for record in caplog.records) == 1
    engine.behaviour.failure = None
    assert api.post(CHAT, ask()).status_code == 200


@pytest.mark.parametrize("failure", [PanicError("at the disco"), SystemExit(3)])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classify"])
def test_an_answer_in_one_piece_survives_a_librarys_panic(
    api: Any, engine: FakeClient, png: bytes, image_part: Any, failure: BaseException, path: str
) -> None:
    engine.behaviour.failure = failure
    fields = {"input": "a"} if "embeddings" in path else {"images": [image_part(png)], "labels": ["a"]}
    response = api.post(path, {"model": "fake-clip", **fields})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")


@pytest.mark.parametrize("failure", [PanicError("at the disco"), SystemExit(3)])
def test_a_panic_within_a_stream_is_its_last_event_but_one(
    api: Any,
    engine: FakeClient,
    ask: Callable[..., Any],
    read_events: Callable[[str], list[Any]],
    failure: BaseException,
) -> None:
    engine.behaviour.failure, engine.behaviour.failure_after_tokens = failure, 1
    *_, error, last = read_events(api.post(CHAT, ask(stream=True)).text)
    assert (error["error"]["code"], last) == ("internal", "[DONE]")


@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("can't start new thread"), OutOfMemoryError("no room for 9 bytes")]
)
def test_the_machines_lack_of_memory_is_not_the_callers_fault(
    api: Any, engine: FakeClient, ask: Callable[..., Any], failure: BaseException
) -> None:
    engine.behaviour.failure = failure
    response = api.post(CHAT, ask())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "out_of_memory")
    assert response.headers["retry-after"] == "1"


def cancelled(engine: FakeClient, body: Any) -> list[Any]:
    """Cancel a request from outside, as a server does at its end, and return what was sent."""
    app, sent = create_app(engine, ApiSettings()), []
    messages = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}

    async def receive() -> Any:
        return next(messages, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        request = asyncio.create_task(app(scope, receive, send))
        while not engine.num_running:
            await asyncio.sleep(0.01)
        request.cancel()
        await asyncio.wait_for(request, 20)

    asyncio.run(main())
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_the_servers_end_cuts_is_answered_with_one_line_in_the_log(
    engine: FakeClient, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    engine.behaviour.first_token_s = 60
    start, body = cancelled(engine, ask(stream=stream))
    assert start["status"] == 503
    assert json.loads(body["body"])["error"]["code"] == "engine_dead"
    assert [(record.levelno, record.exc_info) for record in caplog.records] == [(logging.WARNING, None)]


def test_an_engine_that_is_closed_fails_what_waits_and_ends_its_streams(
    engine: FakeClient, ask: Callable[..., Any], read_events: Callable[[str], list[Any]]
) -> None:
    import httpx

    engine.behaviour.token_s = 60
    app = create_app(engine, ApiSettings())

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            asked = [asyncio.create_task(client.post(CHAT, json=ask(stream=stream))) for stream in (False, True)]
            while engine.num_running < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # the stream's first token, which nothing but this loop holds up, has gone out
            await engine.close()
            return await asyncio.gather(*asked)

    whole, stream = asyncio.run(main())
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "engine_dead")
    *_, error, last = read_events(stream.text)
    assert (error["error"]["code"], last) == ("engine_dead", "[DONE]")


def test_work_that_does_not_end_when_it_is_cancelled_keeps_nobody_waiting(
    engine: FakeClient, ask: Callable[..., Any], make_caller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.api import disconnect

    monkeypatch.setattr(disconnect, "_STOP_TIMEOUT_S", 0.2)
    is_over = False

    async def stubborn(request: Any) -> Any:
        while not is_over:
            try:
                await asyncio.sleep(0.2)
            except asyncio.CancelledError:
                continue

    async def give_up(receive: Any) -> None:
        await asyncio.sleep(0.05)

    async def main() -> None:
        nonlocal is_over
        monkeypatch.setattr(disconnect, "_wait_for_disconnect", give_up)
        with pytest.raises(disconnect.ClientDisconnect):
            await asyncio.wait_for(disconnect.until_disconnect(None, stubborn(None)), 20)  # type: ignore[arg-type]
        is_over = True
        await asyncio.sleep(0.3)

    asyncio.run(main())


def test_an_error_of_ours_is_no_panic() -> None:
    from serving.api.disconnect import contained

    async def failing() -> None:
        raise EngineDeadError("died")

    with pytest.raises(EngineDeadError):
        asyncio.run(contained(failing()))
