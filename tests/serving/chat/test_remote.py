from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bundle.errors import EngineDeadError, ModelNotFoundError, OverloadedError, ParameterError, PocketVLMError
from serving.chat.answerer import Took
from serving.chat.remote import RemoteAnswerer
from serving.chat.talk import Choices, Picture, Talk
from serving.fake import FAKE_CLIP, FakeClient
from serving.protocol import ImagePart

DELTA = b'data: {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": null}]}\n\n'


async def asked(answerer: RemoteAnswerer, talk: Talk, question: str) -> tuple[str, Took]:
    try:
        await answerer.start()
        *pieces, took = [piece async for piece in answerer.answer(talk, question)]
    finally:
        await answerer.close()
    return "".join(pieces), took


def ask(url: str, talk: Talk | None = None, **options: Any) -> tuple[str, Took]:
    return asyncio.run(asked(RemoteAnswerer(url, **options), talk or Talk(), "hello there"))


@pytest.fixture
def engine() -> FakeClient:
    return FakeClient()


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_a_server_is_asked_whatever_the_form_of_its_address(
    serve_edge: Callable[..., str], engine: FakeClient, ending: str
) -> None:
    text, took = ask(serve_edge(engine) + ending)
    assert text == "0 images. hello there"
    assert (took.usage.completion_tokens, took.reason) == (4, "stop")


def test_pictures_and_choices_reach_the_engine(
    serve_edge: Callable[..., str], engine: FakeClient, image_bytes: Any
) -> None:
    talk = Talk(pictures=[Picture.of("a.png", image_bytes())])
    talk.choices = Choices(temperature=0.5, max_tokens=2, vision_keep=0.5, kv_budget=0.25, kv_policy="knorm")
    text, took = ask(serve_edge(engine), talk)
    request = engine.generations[0]
    assert request.messages[0].parts[0] == ImagePart(image_bytes())
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0.5, 2)
    assert (request.vision.method, request.vision.keep) == ("uniform", 0.5)
    assert (request.kv.policy, request.kv.budget) == ("knorm", 0.25)
    assert (text, took.reason, took.usage.image_tokens) == ("1 images.", "length", 4)


def test_a_share_of_pictures_is_not_sent_where_there_are_none(
    serve_edge: Callable[..., str], engine: FakeClient
) -> None:
    ask(serve_edge(engine), Talk(choices=Choices(vision_keep=0.5)))
    assert engine.generations[0].vision is None


def test_a_busy_server_is_asked_again(serve_edge: Callable[..., str], engine: FakeClient) -> None:
    engine.behaviour.max_running = 0
    url = serve_edge(engine)
    timer = threading.Timer(0.3, lambda: setattr(engine.behaviour, "max_running", 8))
    timer.start()
    assert ask(url)[0] == "0 images. hello there"
    timer.join()


def test_a_server_without_a_model_that_chats_says_so(serve_edge: Callable[..., str]) -> None:
    with pytest.raises(ModelNotFoundError, match="serves no model that chats"):
        ask(serve_edge(FakeClient((FAKE_CLIP,))))


def test_a_refusal_is_told_in_the_servers_words(serve_edge: Callable[..., str], engine: FakeClient) -> None:
    with pytest.raises(ParameterError, match="model 'other' is not served here; served: fake-vlm"):
        ask(serve_edge(engine), model="other")


def test_a_failure_in_the_middle_is_told(serve_edge: Callable[..., str], engine: FakeClient) -> None:
    engine.behaviour.failure, engine.behaviour.failure_after_tokens = EngineDeadError("the engine died"), 2
    with pytest.raises(EngineDeadError, match="the engine died"):
        ask(serve_edge(engine))


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(ParameterError, match=r"http://localhost:80a is no address of a server: Invalid port: '80a'"):
        RemoteAnswerer("http://localhost:80a")


def test_nobody_at_the_address_is_told(unused_tcp_url: str) -> None:
    with pytest.raises(EngineDeadError, match="does not answer"):
        ask(unused_tcp_url)


@pytest.fixture
def unused_tcp_url() -> str:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


class Canned(BaseHTTPRequestHandler):
    """Answers every request as it is told."""

    status, body, kind = 200, b"", "text/event-stream"
    heads: list[dict[str, str]]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.heads.append(dict(self.headers))
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def canned() -> Iterator[Any]:
    """A foreign server, and what it answers."""

    own: Any = type("Own", (Canned,), {"heads": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), own) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield own
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (200, DELTA, EngineDeadError, "broke off in the middle"),
        (200, b"data: <html>\n\n", EngineDeadError, "what is no event"),
        (
            401,
            b'{"error": {"message": "bad key"}}',
            ParameterError,
            "wants an API key, and this one is not taken: bad key. Put it into",
        ),
        (404, b"<html>", ParameterError, "it answered 404"),
        (422, b'{"detail": "no such field"}', ParameterError, "no such field"),
        (429, b"", OverloadedError, "it answered 429"),
        (502, b"", EngineDeadError, "it answered 502"),
    ],
)
def test_what_other_servers_answer_is_told_in_words(
    canned: Any, status: int, body: bytes, kind: type[PocketVLMError], words: str
) -> None:
    canned.status, canned.body = status, body
    with pytest.raises(kind, match=words):
        ask(canned.url, model="m", key="secret")


def test_a_server_that_tells_no_counts_is_timed_here(canned: Any) -> None:
    canned.body = DELTA + b"data: [DONE]\n\n"
    text, took = ask(canned.url, model="m")
    assert (text, took.usage) == ("hi", None)
    assert 0 < took.timings.first_token_s <= took.timings.total_s


def test_characters_that_end_lines_elsewhere_end_none_here(canned: Any) -> None:
    said = "a\u2028b\u2029c\x85d"
    delta = json.dumps({"choices": [{"index": 0, "delta": {"content": said}}]}, ensure_ascii=False)
    canned.body = f"data: {delta}\r\n\r\ndata: [DONE]\n\n".encode()
    assert ask(canned.url, model="m")[0] == said


def test_a_key_is_sent_in_its_header_and_none_where_there_is_none(canned: Any) -> None:
    canned.body = DELTA + b"data: [DONE]\n\n"
    ask(canned.url, model="m", key="secret")
    ask(canned.url, model="m")
    assert [head.get("authorization") for head in map(lower, canned.heads)] == ["Bearer secret", None]


def lower(head: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in head.items()}


def test_what_is_no_list_of_models_asks_whether_the_address_is_right(canned: Any) -> None:
    canned.body = b"<html>"
    with pytest.raises(EngineDeadError, match="is this the right address"):
        ask(canned.url)


@pytest.mark.parametrize("listed", [b'{"data": ["m"]}', b'{"data": [null]}', b'{"data": 1}', b"[]"])
def test_a_list_of_anything_else_is_none_of_models(canned: Any, listed: bytes) -> None:
    canned.body = listed
    with pytest.raises(EngineDeadError, match="is no list of models"):
        ask(canned.url)


@pytest.mark.parametrize("told", [b"null", b'["completion"]', b"{}"])
def test_a_model_whose_server_tells_of_it_otherwise_is_asked(canned: Any, told: bytes) -> None:
    canned.body = b'{"data": [{"id": "m", "capabilities": ' + told + b"}]}"

    async def main() -> str:
        answerer = RemoteAnswerer(canned.url)
        try:
            await answerer.start()
        finally:
            await answerer.close()
        return answerer.name

    assert asyncio.run(main()) == "m"
