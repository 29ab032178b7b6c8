from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import ImageError, MachineError
from serving.chat import fetch
from serving.chat.fetch import fetched, read_picture


class Web(BaseHTTPRequestHandler):
    """A small web: a picture, a way to it, and traps."""

    def do_GET(self) -> None:
        kind = self.path.strip("/")
        if kind.startswith("to-"):
            self.send_response(302)
            self.send_header(
                "Location", {"to-picture": "/picture", "to-ftp": "ftp://127.0.0.1/x"}.get(kind, "/to-ring")
            )
            self.end_headers()
            return
        self.send_response(404 if kind == "absent" else 200)
        if kind == "told-long":
            self.send_header("Content-Length", str(10**9))
        self.end_headers()
        try:
            for _ in range({"endless": 100_000, "slow": 1000}.get(kind, 1)):
                self.wfile.write(b"x" * 1000)
                time.sleep(0.01 if kind == "slow" else 0)
        except OSError:
            pass

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("path", ["picture", "to-picture"])
def test_a_picture_is_fetched_over_a_redirection_too(web: str, path: str) -> None:
    assert fetched(f"{web}/{path}") == b"x" * 1000


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("absent", MachineError, "answers 404 Not Found"),
        ("to-ftp", MachineError, "cannot be fetched"),
        ("to-ring", MachineError, "redirect"),
        ("told-long", ImageError, "holds 1000000000 bytes; at most 50000 are read"),
        ("endless", ImageError, "holds more than 50000 bytes"),
        ("slow", MachineError, "is too slow"),
    ],
)
def test_what_cannot_be_fetched_is_told(web: str, path: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        fetched(f"{web}/{path}", max_bytes=50_000, longest_s=0.2)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.png", "http://[::1", "http:///a.png", "http://a b/c", "http://x:port/y"]
)
def test_an_address_that_leads_nowhere_is_told(url: str) -> None:
    with pytest.raises(MachineError, match="cannot be fetched"):
        fetched(url)


def test_a_host_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(fetch, "SILENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(MachineError, match=r"does not answer within 0.1 s|timed out"):
            fetched(url)


def test_a_file_is_read_and_a_pointer_to_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"data")
    (tmp_path / "b.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert read_picture(str(tmp_path / "a.png")) == b"data"
    with pytest.raises(MachineError, match="git lfs pull"):
        read_picture(str(tmp_path / "b.png"))
    with pytest.raises(MachineError, match="cannot be read"):
        read_picture(str(tmp_path / "c.png"))
    with pytest.raises(MachineError, match="cannot be read"):
        read_picture("a\0b")
