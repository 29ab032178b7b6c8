"""Clients that are slow, silent, endless, early or gone, on real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.fake import FAKE_VLM, FakeClient
from serving.settings import ApiSettings, HttpSettings, ServerSettings

CHAT = "/v1/chat/completions"
PATIENCE_S = 20.0  # far more than a busy machine needs for what the limits below allow

opened: list[socket.socket] = []


@pytest.fixture(autouse=True)
def close_all() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def connect(url: str, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address(url), timeout=PATIENCE_S)
    opened.append(connection)
    connection.sendall(data)
    return connection


def send_until_cut_off(connection: socket.socket, data: bytes) -> bool:
    """Send until the server's system refuses it; False if it never does."""
    for _ in range(1000):
        try:
            connection.sendall(data)
        except OSError:
            return True
        time.sleep(0.02)
    return False


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the server closes; a reset counts as an end."""
    pieces = []
    try:
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def answer_of(data: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def post(body: Any, version: str = "1.1", headers: str = "") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def chat(words: str = "hello there", **fields: Any) -> dict[str, Any]:
    return {"model": "fake-vlm", "messages": [{"role": "user", "content": words}], **fields}


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.fixture
def engine() -> FakeClient:
    return FakeClient()


@pytest.fixture
def hasty(engine: FakeClient, serve_edge: Any) -> str:
    """URL of a server that waits for half a second."""
    http_settings = HttpSettings(head_timeout_s=0.5, idle_timeout_s=1, max_head_bytes=2048)
    return serve_edge(engine, ServerSettings(http=http_settings, api=ApiSettings(body_timeout_s=0.5)))


@pytest.fixture
def url(engine: FakeClient, serve_edge: Any) -> str:
    """URL of a server as it is by default."""
    return serve_edge(engine)


def test_half_a_head_is_not_waited_for_when_its_time_is_over(hasty: str) -> None:
    assert read_all(connect(hasty, b"GET /health/live HTTP/1.1\r\nX: ")) == b""


def test_a_head_that_trickles_has_the_same_time(hasty: str) -> None:
    assert send_until_cut_off(connect(hasty, b"GET /health/live HTTP/1.1\r\n"), b"X: y\r\n")


def test_a_silent_connection_is_closed(hasty: str) -> None:
    assert read_all(connect(hasty)) == b""


def test_a_connection_that_is_not_used_again_is_closed(hasty: str) -> None:
    started_s = time.monotonic()
    received = read_all(connect(hasty, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert received.startswith(b"HTTP/1.1 200")
    assert time.monotonic() - started_s >= 1  # its own limit, above the one of a head


def test_a_body_that_stops_is_answered_and_the_connection_closed(hasty: str) -> None:
    status, error = answer_of(read_all(connect(hasty, post(chat())[:-5])))
    assert (status, error["code"]) == (408, "body_timeout")


def test_the_rest_of_a_body_that_nobody_wants_is_not_waited_for(hasty: str) -> None:
    received = read_all(connect(hasty, b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf"))
    assert received.startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 3000 + b"\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"GET /health/live?" + b"a" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 3000,
    ],
    ids=["a long value", "many headers", "a long URL", "without an end"],
)
def test_a_head_over_the_limit_is_refused_in_the_apis_form(hasty: str, head: bytes) -> None:
    status, error = answer_of(read_all(connect(hasty, head)))
    assert (status, error["code"]) == (431, "head_too_large")
    assert "more than 2048 bytes" in error["message"]


def test_a_head_below_the_limit_is_read(hasty: str) -> None:
    head = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"a" * 1900 + b"\r\n\r\n"
    assert read_all(connect(hasty, head)).startswith(b"HTTP/1.1 200")


def test_a_large_body_in_the_packet_of_its_head_is_no_large_head(hasty: str) -> None:
    assert b" 200 OK" in read_all(connect(hasty, post(chat(user="x" * 5000), headers="Connection: close\r\n")))


def test_an_endless_head_is_cut_off(hasty: str) -> None:
    connection = connect(hasty, b"GET / HTTP/1.1\r\nX: ")
    assert send_until_cut_off(connection, b"a" * 65536)


def test_what_is_no_http_is_refused_in_the_apis_form(url: str) -> None:
    status, error = answer_of(read_all(connect(url, b"\x16\x03\x01 hello\r\n\r\n")))
    assert (status, error["code"]) == (400, "invalid_http")


def test_a_body_that_is_no_chunk_ends_its_request(url: str, engine: FakeClient) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, error = answer_of(read_all(connect(url, head % CHAT.encode() + b"nonsense\r\n")))
    assert (status, error["code"]) == (400, "invalid_http")
    assert engine.num_running == 0


def test_a_body_in_tiny_chunks_is_refused_before_it_is_read(url: str) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection = connect(url, head.encode() + b"1\r\n \r\n" * 50_000)
    status, error = answer_of(read_all(connection))
    assert (status, error["code"]) == (400, "small_chunks")


def test_a_request_of_anthropics_api_is_refused_in_its_form(url: str) -> None:
    head = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    received = read_all(connect(url, head + b"1\r\n \r\n" * 50_000))
    told = json.loads(received.partition(b"\r\n\r\n")[2])
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert "too many small chunks" in told["error"]["message"]


def test_a_body_in_chunks_of_a_usual_size_is_read(url: str) -> None:
    content = json.dumps(chat()).encode().ljust(1_000_000)
    pieces = [content[at : at + 1000] for at in range(0, len(content), 1000)]
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    sent = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    assert read_all(connect(url, sent)).startswith(b"HTTP/1.1 200")


def test_requests_that_come_early_are_answered_in_order(url: str) -> None:
    requests = [post(chat(words)) for words in ("first", "second")]
    requests += [b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
    received = read_all(connect(url, b"".join(requests)))
    places = [received.index(mark) for mark in (b"first", b"second", b" 404 ")]
    assert places == sorted(places)
    assert received.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("num_early", [1, 5])
@pytest.mark.parametrize("is_apart", [False, True])
def test_a_departure_is_seen_behind_requests_that_came_early(
    url: str, engine: FakeClient, num_early: int, is_apart: bool
) -> None:
    engine.behaviour.first_token_s = 60
    first, early = post(chat()), post(chat()) * num_early
    connection = connect(url, first if is_apart else first + early)
    wait_until(lambda: engine.num_running == 1)
    if is_apart:
        connection.sendall(early)
        time.sleep(0.05)
    connection.close()
    wait_until(lambda: engine.num_running == 0)


def test_too_much_that_comes_early_is_dropped_and_the_first_request_answered(
    serve_edge: Any, engine: FakeClient
) -> None:
    engine.behaviour.first_token_s = 0.5
    url = serve_edge(engine, ServerSettings(http=HttpSettings(max_head_bytes=2048)))
    connection = connect(url, post(chat("first")))
    wait_until(lambda: engine.num_running == 1)
    for _ in range(50):
        connection.sendall(post(chat("early")))
    received = read_all(connection)
    assert b"first" in received
    assert b"early" not in received
    assert len(engine.generations) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_only_closed_its_side_is_answered(url: str, engine: FakeClient, stream: bool) -> None:
    engine.behaviour.first_token_s = engine.behaviour.token_s = 0.3
    connection = connect(url, post(chat(stream=stream)))
    connection.shutdown(socket.SHUT_WR)
    received = read_all(connection)
    assert b"HTTP/1.1 200 OK" in received
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n" if stream else b"}")
    assert engine.cancelled == []


def test_a_departure_that_is_heard_of_late_is_seen_by_a_sweep(
    url: str, engine: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.edge.connection._PROBE_DELAYS_S", ())  # as if its answer took longer than those
    engine.behaviour.first_token_s = 60
    connection = connect(url, post(chat()))
    wait_until(lambda: engine.num_running == 1)
    connection.close()
    wait_until(lambda: engine.num_running == 0)


def test_a_client_of_http_1_0_reads_a_stream_as_it_is(url: str) -> None:
    received = read_all(connect(url, post(chat(stream=True), version="1.0")))
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"data: ")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_does_not_read_loses_its_connection(serve_edge: Any, stream: bool) -> None:
    engine = FakeClient(cards=(replace(FAKE_VLM, context_tokens=1_000_000),))
    settings = ServerSettings(api=ApiSettings(stalled_client_s=0.5))
    url = serve_edge(engine, settings, send_buffer_bytes=4096)
    words = " ".join(["word" * (100 if stream else 3_000)] * 200)
    connection = socket.socket()
    opened.append(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(address(url))
    connection.settimeout(PATIENCE_S)
    connection.sendall(post(chat(words, stream=stream)))
    wait_until(lambda: engine.num_running == 0 and len(engine.generations) == 1)
    assert send_until_cut_off(connection, b"x")
    assert httpx.get(f"{url}/health/live").status_code == 200


def test_the_oldest_idle_connection_makes_room_for_a_new_one(serve_edge: Any, engine: FakeClient) -> None:
    url = serve_edge(engine, ServerSettings(http=HttpSettings(max_connections=8)))
    silent = [connect(url) for _ in range(30)]
    assert httpx.get(f"{url}/health/live").status_code == 200
    silent[0].settimeout(PATIENCE_S)
    assert read_all(silent[0]) == b""
    silent[-1].sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert read_all(silent[-1]).startswith(b"HTTP/1.1 200")


def test_a_connection_too_many_is_told_so_when_all_are_at_work(serve_edge: Any, engine: FakeClient) -> None:
    engine.behaviour.first_token_s = 60
    url = serve_edge(engine, ServerSettings(http=HttpSettings(max_connections=4)))
    busy = [connect(url, post(chat())) for _ in range(4)]
    wait_until(lambda: engine.num_running == 4)
    received = read_all(connect(url))
    assert answer_of(received)[0] == 503
    assert b"retry-after: 1" in received
    busy[0].close()
    wait_until(lambda: engine.num_running == 3)
    assert httpx.get(f"{url}/health/live").status_code == 200


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_health_may_be_asked_for_by_head(url: str, path: str) -> None:
    connection = http.client.HTTPConnection(*address(url), timeout=PATIENCE_S)
    connection.request("HEAD", path)
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    connection.close()
