"""`pocketvlm top` against servers of ours, and against what is none."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import uvicorn
from rich.console import Console

from commands.watching import Server, summary, tables
from serving.api.app import create_app
from serving.engine_status import EngineStatus, SlotStatus, WaitingStatus
from serving.fake import FakeClient
from serving.listener import open_listener, url_of
from serving.settings import ApiSettings


class Busy(FakeClient):
    """A fake whose one model reads, answers and keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.num_looks = 0

    async def status(self) -> dict[str, dict[str, EngineStatus]]:
        self.num_looks += 1
        gauges = {
            "num_requests_running": 2.0,
            "num_requests_waiting": 1.0,
            "num_tokens_running": 96.0,
            "kv_cache_rows": 512.0,
            "tokens_sampled": 100.0 * self.num_looks,
            "prefix_cache_queries": 10.0,
            "prefix_cache_hits": 4.0,
        }
        slots = (
            SlotStatus(0, "decode", 64, "chatcmpl-\x1b[31mred", 60, 4, 0, 16, 1.5),
            SlotStatus(1, "prefill", 32, "chatcmpl-two", 90),
            SlotStatus(2),
            SlotStatus(3, "kept", 48),
        )
        waiting = (WaitingStatus("chatcmpl-three", 70, 0.5),)
        told = EngineStatus(10.0 * self.num_looks, 300 << 20, gauges, slots, waiting, 256, 2, (0.1, 0.3, 0.2))
        return {"fake-vlm": {"0": told}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with open_listener("127.0.0.1", 0) as listener:
        server = uvicorn.Server(
            uvicorn.Config(create_app(Busy(), ApiSettings()), log_level="warning", lifespan="off", ws="none")
        )
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield url_of(listener)
        server.should_exit = True
        thread.join()


@contextmanager
def stranger(status: int, text: str, **headers: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that gives every question one answer; yields its URL and the headers that it was sent."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_once_shows_requests_slots_rows_and_rates(pocketvlm: Callable, url: str) -> None:
    done = pocketvlm("top", url, "--once", "--period-s", 0.1)
    assert done.returncode == 0, done.stderr
    for told in (
        "2/2 running, 1 waiting",
        "10 out, first token 200 ms",
        "96 of 512 rows run, 48 kept, 40% of prompts found",
        "memory 300 MiB",
    ):
        assert told in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["0", "decode"] in [row[:2] for row in rows]
    assert ["3", "kept"] in [row[:2] for row in rows]
    assert ["+1", "waits", "70"] in [row[:3] for row in rows]
    assert "2" not in {row[0] for row in rows if row}  # a free slot is no news


def test_nothing_that_a_server_tells_moves_the_cursor(url: str) -> None:
    now = Server(url, None).status()
    console = Console(file=io.StringIO(), width=200)
    for each in tables(now, now):
        console.print(each)
    shown = console.file.getvalue()
    assert "chatcmpl-[31mred" in shown
    assert "\x1b" not in shown


def test_json_is_the_status_with_its_rates(pocketvlm: Callable, url: str) -> None:
    told = json.loads(pocketvlm("top", url, "--json", "--period-s", 0.1).stdout)
    engine = told["models"][0]["engines"]["0"]
    assert (engine["tokens_sampled_per_s"], engine["prefix_hit_share"]) == (10.0, 0.4)
    assert (engine["first_token_p50_s"], engine["image_hit_share"]) == (0.2, None)
    assert engine["slots"][1]["state"] == "prefill"


def test_an_engine_that_is_new_or_gone_has_no_rate_of_another(url: str) -> None:
    def status(**engines: float) -> dict[str, Any]:
        each = {"memory_bytes": 0, "slots": [], "waiting": [], "slot_rows": 0, "num_seats": 0, "first_token_s": []}
        told = {name: {**each, "clock_s": 2.0, "gauges": {"tokens_sampled": count}} for name, count in engines.items()}
        model = {"id": "m", "engines": told}
        return {"version": "1", "uptime_s": 1.0, "is_ready": True, "reason": "", "models": [model]}

    now = status(old=70.0, new=5000.0)
    now["models"][0]["engines"]["old"]["clock_s"] = 4.0
    rates = summary(now, status(old=50.0, gone=1.0))["models"][0]["engines"]
    assert rates["old"]["tokens_sampled_per_s"] == 10.0
    assert rates["new"]["tokens_sampled_per_s"] == 0.0
    assert [*tables(now, now)]


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (404, "", "answers 404"),
        (401, "", "asks for a key (401)"),
        (200, "<html>hello</html>", "it begins with '<html>hello</html>'"),
        (200, '{"object": "list"}', "is no status of a PocketVLM server"),
        (200, "[1]", "is no status of a PocketVLM server"),
    ],
)
def test_what_is_no_server_of_ours_is_named(pocketvlm: Callable, status: int, text: str, told: str) -> None:
    with stranger(status, text) as (url, _):
        done = pocketvlm("top", url, "--once")
    assert done.returncode == 1
    assert told in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_key_is_sent_and_follows_no_redirect(pocketvlm: Callable, monkeypatch: Any) -> None:
    with stranger(200, "{}") as (thief, stolen), stranger(302, "", Location=thief) as (url, asked):
        monkeypatch.setenv("POCKETVLM_KEY", "pv-secret")
        done = pocketvlm("top", f"{url}/v1", "--once")
    assert (asked[0]["authorization"], asked[0]["path"]) == ("Bearer pv-secret", "/v1/status")
    assert stolen == []
    assert "pv-secret" not in done.stderr


@pytest.mark.parametrize(
    ("url", "code", "told"),
    [
        ("http://127.0.0.1:1", 1, "does not answer"),
        ("ftp://host", 2, "is no URL of a server"),
        ("http://[::1", 2, "is no URL of a server"),
        ("http://host:80a", 2, "is no URL of a server"),
    ],
)
def test_nobody_there_is_told(pocketvlm: Callable, url: str, code: int, told: str) -> None:
    done = pocketvlm("top", url, "--once")
    assert done.returncode == code
    assert told in done.stderr.replace("\n", " ")
