"""Chats with a small server of our own: tokens are counted as it tells them, and failures are not."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from loadtests.peers import chats as module
from loadtests.peers.chats import Chats
from loadtests.peers.measures import Measure

SERVER = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(json.dumps({"data": [{"id": "tiny"}]}))

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["model"] != "tiny" or asked["max_tokens"] != 64 or sys.argv[1] == "refuse":
            self.answer("full", 429)
            return
        usage = {"choices": [], "usage": {"completion_tokens": 40}} if sys.argv[1] == "tell" else {"choices": []}
        self.answer(f'data: {{"choices": [1]}}\\n\\ndata: {json.dumps(usage)}\\n\\ndata: [DONE]\\n\\n')

    def answer(self, text, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""
THREE = Measure("chats-3", "chats", 3)


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends servers with the test, not with the process."""
    at_end: list[tuple[object, ...]] = []
    monkeypatch.setattr(module.atexit, "register", lambda *work: at_end.append(work))
    yield
    for stop, server in at_end:
        stop(server)  # type: ignore[operator]


@pytest.mark.usefixtures("stops")
def test_a_round_counts_the_tokens_of_all_chats() -> None:
    chats = Chats([sys.executable, "-c", SERVER, "tell"])
    for _ in range(2):  # the server starts once
        work, steps = chats.prepare(THREE)
        assert (work(), steps) == (3 * 40, 1)


@pytest.mark.usefixtures("stops")
@pytest.mark.parametrize(("manner", "told"), [("refuse", "HTTP 429: full"), ("keep", "told no usage")])
def test_a_chat_that_fails_fails_the_round(manner: str, told: str) -> None:
    work, _ = Chats([sys.executable, "-c", SERVER, manner]).prepare(THREE)
    with pytest.raises(RuntimeError, match=told):
        work()


@pytest.mark.usefixtures("stops")
def test_a_server_that_ends_is_told_with_its_code() -> None:
    with pytest.raises(RuntimeError, match="not ready; code 5"):
        Chats([sys.executable, "-c", "raise SystemExit(5)"]).prepare(THREE)
