"""The overhead benchmark asks the real application, and a refusal is an error and not a quick answer."""

from __future__ import annotations

import dataclasses
import http.client
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bundle.errors import MachineError
from loadtests.overhead import ALONE, Case, cases, exchange, measure_case
from loadtests.stopwatch import Stopwatch
from serving.fake import FakeBehaviour, FakeClient

ROOT = Path(__file__).resolve().parents[2]


def connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)


def test_every_kind_of_request_is_answered_and_measured(fake_server: Any) -> None:
    for case in cases():
        lines = list(measure_case(case, {"a": fake_server.url, "b": fake_server.url}, Stopwatch(1, 3)))
        assert [line.server for line in lines] == ([ALONE] if case.alone else []) + ["a", "b"]
        assert all(line.milliseconds.n == 3 and line.milliseconds.p50 > 0 for line in lines)


def test_first_text_comes_before_the_whole_stream(serve: Any) -> None:
    (first,) = [case for case in cases() if case.is_first_text]
    with serve(FakeClient(behaviour=FakeBehaviour(first_token_s=0.03, token_s=0.1))) as url:
        connection = connect(url)
        # A machine that is busy elsewhere may read the first text late, but not each time as late as the last.
        firsts_ms = [exchange(connection, first) for _ in range(3)]
        whole_ms = exchange(connection, dataclasses.replace(first, is_first_text=False))
        connection.close()
    # The fake engine waits 30 ms for the first word and 100 ms for each of the six that follow, on timers that count
    # whole milliseconds.
    assert 29 <= min(firsts_ms) < 620 <= whole_ms


@pytest.mark.parametrize("is_first_text", [False, True])
def test_a_refused_request_is_an_error(fake_server: Any, is_first_text: bool) -> None:
    body = {"model": "nobody", "messages": [{"role": "user", "content": "?"}], "stream": True}
    connection = connect(fake_server.url)
    with pytest.raises(MachineError, match="404"):
        exchange(connection, Case("refused", "/v1/chat/completions", body, is_first_text))
    connection.close()


@pytest.mark.slow
def test_the_edge_server_and_ray_serve_are_measured_side_by_side() -> None:
    command = [sys.executable, "-m", "loadtests.overhead", "--ray", "--repeats", "3", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert {line["server"] for line in report["lines"]} == {ALONE, "edge", "Ray Serve"}
    assert {"ray", "uvicorn", "fastapi", "python"} <= set(report["machine"]["versions"])
