"""The measuring itself: a silence, a weight, an answer cut short or never given are found with their sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import Attack, Record, table, write_json
from probing import Probed, Prober, waited_s
from side_by_side import side_by_side
from victim import Victim, free_port
from wire import ask, read_reply

SERVER = """
import http.server, sys, time
kept = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"status": "live"}')
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/silence": time.sleep(0.8)
        if self.path == "/weight": kept.append(bytearray(b"x") * 200_000_000)
        if self.path == "/hang": time.sleep(4)
        if self.path == "/drop": return
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers()
        self.wfile.write(b"{" if self.path == "/cut" else b"{}")
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def simple() -> Iterator[Victim]:
    """A server of one thread, which is silent while it works."""
    port = free_port()
    victim = Victim(subprocess.Popen([sys.executable, "-c", SERVER, str(port)]), port, Path("/dev/null"))
    assert victim.wait_until(lambda: victim.status("/health/live", 1) == 200, 30) is not None
    yield victim
    victim.kill()


def probed_while(victim: Victim, path: str) -> Probed:
    """Return what a prober saw of one request."""
    prober = Prober(victim.port, victim.pid)
    ask(victim.port, path, b"{}")
    time.sleep(0.3)  # a weighing, and a probe that is answered
    return prober.stop()


def test_a_silence_is_measured(simple: Victim) -> None:
    assert probed_while(simple, "/silence").silence_s >= 0.7
    assert probed_while(simple, "/fine").silence_s < 0.5


def test_a_silence_that_has_not_ended_is_measured_too(simple: Victim) -> None:
    prober = Prober(simple.port, simple.pid)
    simple.kill()
    time.sleep(0.6)
    assert prober.stop().silence_s >= 0.5


def test_the_twin_is_asked_in_the_same_seconds(simple: Victim) -> None:
    prober = Prober(simple.port, simple.pid, simple.port)
    ask(simple.port, "/silence", b"{}")
    time.sleep(0.3)
    assert prober.stop().twin_silence_s >= 0.7


def test_a_weight_is_measured(simple: Victim) -> None:
    assert 190 <= probed_while(simple, "/weight").growth_mb <= 260
    assert probed_while(simple, "/fine").growth_mb < 50


@pytest.mark.parametrize(
    ("path", "ending"), [("/fine", "answered"), ("/drop", "lost"), ("/cut", "lost"), ("/hang", "hung")]
)
def test_how_a_request_ended_is_told(path: str, ending: str, simple: Victim) -> None:
    assert ask(simple.port, path, b"{}", 2.5).ending == ending


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        (b'HTTP/1.1 400 Bad Request\r\ncontent-length: 22\r\n\r\n{"error": {"code": 1}}', "refused"),
        (b"HTTP/1.1 500 X\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nno", "lost"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "answered"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", "lost"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "answered"),
        (b"HTTP/1.1 200 OK\r\n", "lost"),
        (b"", "lost"),
    ],
)
def test_an_answer_is_whole_and_of_the_apis_own_form_or_lost(answer: bytes, ending: str) -> None:
    assert read_reply(answer, True, 0.0).ending == ending


def test_what_goes_beyond_a_limit_is_a_fault() -> None:
    attack = Attack("a", replies=[read_reply(b"", True, 0.0), read_reply(b"", False, 0.0)])
    damage = attack.damage(Probed(0.3, 0.3, 0.01, 9, 0, 301.0), 1.0)
    told = "; ".join(damage.faults)
    assert all(
        word in told
        for word in ("1 lost", "1 hung", "silent for 0.30 s, 0.30 s of it by its own doing; 0.25 s", "301 MB, 300")
    )
    assert "FAILS" in table([damage])[1]


def test_what_keeps_the_twin_silent_too_is_no_fault_of_the_server() -> None:
    assert not Attack("a").damage(Probed(0.9, 0.9, 0.5, 9, 0, 0.0), 1.0).faults
    assert Attack("a").damage(Probed(1.1, 1.1, 0.5, 9, 0, 0.0), 1.0).faults


def test_waiting_for_a_core_is_no_fault_of_the_server() -> None:
    assert not Attack("a").damage(Probed(0.9, 0.2, 0.0, 9, 0, 0.0), 1.0).faults
    assert 0 < waited_s(os.getpid()) < waited_s(1) + time.monotonic()


def test_a_row_is_there_also_where_the_attack_failed() -> None:
    record = Record()
    with pytest.raises(ZeroDivisionError), record.attack("a"):
        raise ZeroDivisionError("x")
    with pytest.raises(pytest.fail.Exception), record.attack("b") as attack:
        attack.must(False, "it does not hold")
    assert [row.faults for row in record.rows] == [("ZeroDivisionError: x",), ("it does not hold",)]


def test_two_tables_are_told_side_by_side(tmp_path: Path) -> None:
    old = Attack("a", replies=[read_reply(b"", True, 0.0)]).damage(Probed(0.3, 0.3, 0.0, 9, 0, 301.0), 1.0)
    new = [Attack("a").damage(Probed(0.1, 0.1, 0.0, 9, 0, 1.0), 1.0), Attack("b").damage(None, 1.0)]
    write_json([old], tmp_path / "old")
    write_json(new, tmp_path / "new")
    lines = side_by_side(*(json.loads((tmp_path / name).read_text()) for name in ("old", "new")))
    assert [line.split() for line in lines[1:]] == [
        ["a", "0.30", "->", "0.10", "301", "->", "1", "1", "->", "0", "0", "->", "0", "FAILS", "holds"],
        ["b", "-", "->", "-", "-", "->", "-", "-", "->", "0", "-", "->", "0", "-", "holds"],
    ]
