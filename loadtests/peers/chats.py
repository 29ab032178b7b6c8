"""Chats over HTTP with a server that a system starts: so many at once, each of as many tokens as a measure says.

It imports nothing but the standard library, for it runs in peers' environments too.
"""

from __future__ import annotations

import atexit
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from loadtests.peers.measures import ANSWER_TOKENS, Measure
from loadtests.peers.worker import Work

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 120.0
_POLL_S = 0.2
_CHAT_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0


class Chats:
    """A server in a process of its own, started when it is first asked.

    Args:
        command: Starts it; a free port is put behind.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._port = 0
        self._model = ""
        self._round = 0

    def prepare(self, measure: Measure) -> Work:
        """Return a round of chats, which returns how many tokens were answered."""
        if not self._port:
            self._start()
        self._round += 1
        questions = [f"What is in picture {number} of round {self._round:03}?" for number in range(measure.size)]

        def chat() -> int:
            with ThreadPoolExecutor(len(questions)) as pool:
                return sum(pool.map(self._ask, questions))

        return chat, 1

    def _start(self) -> None:
        port = _free_port()
        server = subprocess.Popen([*self._command, str(port)], stdin=subprocess.DEVNULL)
        atexit.register(_stop, server)
        end_s = time.monotonic() + _START_TIMEOUT_S
        while not (model := _try_model(port)):
            if server.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"the server of {self._command} is not ready; code {server.poll()}")
            time.sleep(_POLL_S)
        self._port, self._model = port, model

    def _ask(self, question: str) -> int:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=_CHAT_TIMEOUT_S)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise RuntimeError(f"HTTP {answer.status}: {answer.read(300).decode(errors='replace')}")
            return _output_tokens(answer)
        finally:
            connection.close()


def _output_tokens(answer: http.client.HTTPResponse) -> int:
    """Read a stream to its end and return what its usage tells."""
    found = 0
    for line in answer:
        if line.startswith(b"data: {"):
            usage = json.loads(line.removeprefix(b"data: ")).get("usage")
            found = usage["completion_tokens"] if usage else found
    if not found:
        raise RuntimeError("the server told no usage, or answered no token")
    return found


def _try_model(port: int) -> str:
    """Return the name of a served model; empty while the server is not ready."""
    connection = http.client.HTTPConnection(_HOST, port, timeout=_CHAT_TIMEOUT_S)
    try:
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        told = json.loads(answer.read()) if answer.status == http.client.OK else {"data": []}
        return str(told["data"][0]["id"]) if told["data"] else ""
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind((_HOST, 0))
        return int(taken.getsockname()[1])


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
