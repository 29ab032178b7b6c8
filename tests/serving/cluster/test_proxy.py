"""What Ray's proxies do beyond passing on, around applications that end as Ray's proxy does; no cluster runs."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import PydanticDeprecatedSince20

from serving.api.errors import error_body
from serving.api.events import named_event

with warnings.catch_warnings():
    # Ray 2.60 declares its own settings in a way that pydantic will drop.
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    from serving.cluster import proxy
    from serving.cluster.proxy import MARK, OwnForm
    from serving.cluster.watch import ReplicaWatch, tell_caller

Behave = Callable[[bytes, Any], Awaitable[None]]
OURS = [(MARK.encode(), b"1")]
EVENTS = [*OURS, (b"content-type", b"text/event-stream; charset=utf-8")]


@pytest.fixture(autouse=True)
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplicaWatch]:
    """A watch over two ingress replicas, of this test alone."""
    watch = ReplicaWatch()
    watch.begin_round({"a": {}, "b": {}})
    monkeypatch.setattr(proxy, "watch_of", lambda _: watch)
    return watch


class Proxy:
    """Ray's proxy before ingress replicas that behave one after another in given ways."""

    def __init__(self, *behaviours: Behave) -> None:
        self.behaviours = list(behaviours)
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, has_more = b"", True
        while has_more:
            message = await receive()
            body, has_more = body + message["body"], message.get("more_body", False)
        self.bodies.append(body)
        await self.behaviours.pop(0)(body, send)


async def head(send: Any, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def piece(send: Any, text: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": text, "more_body": more})


async def whole(body: bytes, send: Any) -> None:
    await head(send, 200, OURS)
    await piece(send, b"answer to " + body[:10])


def by_ray(status: int, text: bytes) -> Behave:
    async def behave(body: bytes, send: Any) -> None:
        await head(send, status, [(b"content-type", b"text/plain")])
        await piece(send, text)

    return behave


async def cut(body: bytes, send: Any) -> None:
    await head(send, 200, EVENTS)
    await piece(send, b'data: {"a":1}\n\n', more=True)


async def nothing(body: bytes, send: Any) -> None:
    return


async def fails(body: bytes, send: Any) -> None:
    raise KeyError("a bug of Ray's")


def post(app: Proxy, content: bytes = b"question", path: str = "/v1/x") -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(OwnForm(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await client.post(path, content=content, headers={"X-Request-ID": "mine"})

    return asyncio.run(ask())


def test_an_answer_of_an_ingress_passes_without_its_mark() -> None:
    response = post(Proxy(whole))
    assert (response.status_code, response.text) == (200, "answer to question")
    assert MARK not in response.headers


LOST = [by_ray(500, b"Internal Server Error"), by_ray(503, b"unavailable"), nothing, fails]


@pytest.mark.parametrize("lost", LOST)
def test_a_request_whose_ingress_is_gone_goes_to_another_with_its_whole_body(lost: Behave) -> None:
    app = Proxy(lost, whole)
    assert post(app).text == "answer to question"
    assert app.bodies == [b"question"] * 2


@pytest.mark.parametrize("lost", LOST)
def test_a_request_that_two_ingresses_lost_ends_in_the_apis_form(lost: Behave) -> None:
    app = Proxy(lost, lost, whole)
    response = post(app)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_dead")
    assert response.headers["retry-after"] == "1"
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert len(app.bodies) == 2


def test_a_body_too_large_to_keep_is_sent_once() -> None:
    app = Proxy(nothing, whole)
    assert post(app, b"x" * (1 << 20) + b"y").status_code == 503
    assert len(app.bodies) == 1


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (by_ray(404, b"Path '/v1/x' not found. Ping http://.../-/routes"), 503, "engine_dead"),
        (by_ray(408, b"Request timed out after 1s."), 504, "deadline_exceeded"),
    ],
    ids=["no application", "too slow"],
)
def test_what_ray_answers_itself_gets_the_apis_form(answer: Behave, status: int, code: str) -> None:
    app = Proxy(answer, answer)
    response = post(app)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert len(app.bodies) == (1 if status == 504 else 2)


def test_a_stream_that_is_cut_ends_in_an_error_event() -> None:
    events = post(Proxy(cut, whole)).text.split("\n\n")
    assert json.loads(events[0].removeprefix("data: ")) == {"a": 1}
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert events[2:] == ["data: [DONE]", ""]


def test_a_stream_of_anthropics_api_ends_in_its_own_error_event() -> None:
    last = post(Proxy(cut, whole), path="/v1/messages").text.split("\n\n")[1:]
    name, data = last[0].split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert (name, told["type"], told["error"]["type"]) == ("event: error", "error", "overloaded_error")
    assert last[1:] == [""]


def test_a_stream_of_responses_ends_in_the_next_of_its_events() -> None:
    async def begin(body: bytes, send: Any) -> None:
        await head(send, 200, EVENTS)
        await piece(send, named_event({"type": "response.created", "sequence_number": 0}), more=True)
        await piece(
            send, named_event({"type": "response.in_progress", "sequence_number": 1}) + b": alive\n\n", more=True
        )

    last = post(Proxy(begin, whole), path="/v1/responses").text.split("\n\n")[3:]
    name, data = last[0].split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert (name, told["type"], told["sequence_number"]) == ("event: error", "error", 2)
    assert (told["code"], last[1:]) == ("engine_dead", [""])


def test_a_request_of_anthropics_api_that_is_lost_ends_in_its_form_and_says_when_to_come_again() -> None:
    response = post(Proxy(nothing, nothing), path="/v1/messages")
    told = response.json()
    assert (response.status_code, told["type"], told["error"]["type"]) == (503, "error", "overloaded_error")
    assert response.headers["retry-after"] == "1"
    assert response.headers.get_list("x-request-id") == ["mine"]


def test_a_stream_of_an_ingress_that_falls_silent_ends_in_an_error_event(watch: ReplicaWatch) -> None:
    async def stop(body: bytes, send: Any) -> None:
        tell_caller("a")
        await cut(body, send)
        silence(watch, "a")
        await asyncio.sleep(60)

    events = post(Proxy(stop)).text.split("\n\n")
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert events[2] == "data: [DONE]"


def test_a_request_of_an_ingress_that_falls_silent_goes_to_another(watch: ReplicaWatch) -> None:
    async def stop(body: bytes, send: Any) -> None:
        tell_caller("a")
        silence(watch, "a")
        await asyncio.sleep(60)

    assert post(Proxy(stop, whole)).text == "answer to question"


def silence(watch: ReplicaWatch, replica: str) -> None:
    while not watch.is_silent(replica):
        watch.begin_round({"a": {}, "b": {}})
        watch.hear("b")


def test_rays_own_paths_pass_as_they_are() -> None:
    response = post(Proxy(by_ray(503, b"This node is being drained.")), path="/-/healthz")
    assert (response.status_code, response.text) == (503, "This node is being drained.")


def test_a_client_that_left_is_sent_nothing_and_its_request_not_tried_again() -> None:
    """Ray's proxy learns of it by the channel, and answers 499."""
    sent = []

    async def leave() -> None:
        messages = [{"type": "http.request", "body": b"", "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await receive()
            await by_ray(499, b"Client disconnected")(b"", send)

        await OwnForm(app)({"type": "http", "path": "/v1/x", "headers": []}, receive, send)

    asyncio.run(leave())
    assert sent == []


def test_ray_finds_the_layer_by_the_path_in_its_environment() -> None:
    from serving.cluster.environment import RAY_ENVIRONMENT

    path = RAY_ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert path == f"{proxy.middlewares.__module__}:{proxy.middlewares.__name__}"
    assert [each.cls for each in proxy.middlewares()] == [OwnForm]


def test_errors_are_those_of_the_api() -> None:
    from bundle.errors import EngineDeadError

    expected = error_body(EngineDeadError("the process that had this request is gone; send it again"))
    assert post(Proxy(nothing, nothing)).json() == expected
