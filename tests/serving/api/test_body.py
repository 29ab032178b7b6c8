from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CHAT = "/v1/chat/completions"


def pieces(size_bytes: int) -> Iterator[bytes]:
    for _ in range(size_bytes // 1024):
        yield b" " * 1024


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_refused(make_caller: Any, ask: Callable[..., Any]) -> None:
    import json

    api = make_caller(max_body_bytes=2048)
    content = json.dumps(ask()).encode()
    headers = {"Content-Type": "application/json"}
    assert api.request("POST", CHAT, content=content.ljust(2048), headers=headers).status_code == 200
    refused = api.request("POST", CHAT, content=content.ljust(2049), headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    assert "at most 2048" in refused.json()["error"]["message"]
    assert "x-request-id" in refused.headers


def test_a_body_without_an_announced_length_is_counted(make_caller: Any) -> None:
    async def body() -> Any:
        for piece in pieces(4096):
            yield piece

    headers = {"Content-Type": "application/json"}
    assert make_caller(max_body_bytes=2048).request("POST", CHAT, content=body(), headers=headers).status_code == 413


def test_an_absurd_content_length_is_a_400(api: Any) -> None:
    assert api.request("POST", CHAT, content=b"{}", headers={"Content-Length": "many"}).status_code == 400


def test_a_client_that_sends_too_much_reads_its_413_on_a_real_socket(server_url: str) -> None:
    """33 MiB: one over the default limit, so that the answer comes before a client that only writes would look."""
    connection = http.client.HTTPConnection(server_url.removeprefix("http://"), timeout=30)
    connection.request("POST", CHAT, body=pieces(33 << 20), headers={"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 413
    assert response.getheader("Connection") == "close"
    response.read()
    connection.close()


def test_a_client_that_leaves_in_the_middle_of_its_body_disturbs_nobody(server_url: str) -> None:
    host, port = server_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", "/health/live")
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("path", ["/health/live", "/v1/models/nobody", "/nowhere"])
def test_every_answer_carries_a_request_id(api: Any, path: str) -> None:
    first, second = (api.get(path).headers["x-request-id"] for _ in range(2))
    assert first != second


def test_a_plain_request_id_comes_back_and_an_odd_one_is_replaced(api: Any) -> None:
    assert api.get("/health/live", headers={"X-Request-ID": "job-7.a_b"}).headers["x-request-id"] == "job-7.a_b"
    for odd in ("a b", "x" * 65, "<script>"):
        assert api.get("/health/live", headers={"X-Request-ID": odd}).headers["x-request-id"] != odd
