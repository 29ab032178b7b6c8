"""`pocketvlm chat` with pipes and at a keyboard."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving.fake import FakeClient
from serving.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def engine() -> FakeClient:
    return FakeClient()


@pytest.fixture
def server_url(engine: FakeClient, edge_servers: Any) -> Iterator[str]:
    with edge_servers(engine, ServerSettings()) as url:
        yield url


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put lines on standard input, which is no terminal."""
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))


def test_a_bundle_answers_each_line_and_tells_beside_it_what_that_took(
    pocketvlm: Any, typed: Any, smolvlm_bundle: Path, image: Path, tmp_path: Path
) -> None:
    typed("/set max_tokens 3", "what is this?", "and this?", f"/save {tmp_path}/talk.json")
    done = pocketvlm("chat", smolvlm_bundle, "--image", image, "--temperature", 0)
    assert done.returncode == 0, done.stderr
    took = re.findall(r"\d+ prompt tokens \((\d+) of images\)", done.stderr)
    assert len(took) == 2
    assert int(took[0]) == int(took[1]) > 0
    answers = [each["content"] for each in json.loads((tmp_path / "talk.json").read_text())["messages"][1::2]]
    assert done.stdout == "".join(f"{answer}\n" for answer in answers)


def test_a_dual_encoder_is_refused(pocketvlm: Any, clip_bundle: Path) -> None:
    done = pocketvlm("chat", clip_bundle)
    assert done.returncode == 1
    assert "does not chat; try pocketvlm embed" in done.stderr


def test_a_server_answers_with_the_key_of_the_environment(
    pocketvlm: Any, typed: Any, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETVLM_KEY", "secret")
    typed("hello")
    done = pocketvlm("chat", server_url, "--system", "be brief")
    assert (done.returncode, done.stdout) == (0, "0 images. hello\n")


def test_a_pipe_with_a_question_that_failed_is_exit_code_one(pocketvlm: Any, typed: Any, server_url: str) -> None:
    typed("word " * 80, "hello")
    done = pocketvlm("chat", server_url)
    assert (done.returncode, done.stdout) == (1, "0 images. hello\n")
    assert "error: the prompt has 80 tokens" in done.stderr


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_pipe_that_is_no_utf_8_is_one_line(
    pocketvlm: Any, server_url: str, monkeypatch: pytest.MonkeyPatch, errors: str
) -> None:
    lines = io.BytesIO(b"hello\ncaf\xe9\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, encoding="utf-8", errors=errors))
    done = pocketvlm("chat", server_url)
    assert done.returncode == 1
    assert "error: standard input is not UTF-8" in done.stderr


def test_a_server_that_is_not_there_is_one_line(pocketvlm: Any, typed: Any) -> None:
    typed("hello")
    done = pocketvlm("chat", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "error: http://127.0.0.1:1 does not answer" in done.stderr


@pytest.mark.parametrize("source", ["-", "url"])
def test_run_takes_an_image_from_standard_input_and_from_the_web(
    pocketvlm: Any, smolvlm_bundle: Path, image: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *words: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(image.parent))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(image.read_bytes())))
        named = f"http://127.0.0.1:{web.server_address[1]}/{image.name}" if source == "url" else "-"
        done = pocketvlm("run", smolvlm_bundle, "--image", named, "--max-tokens", 1, "--json", "what?")
        web.shutdown()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usage"]["image_tokens"] > 0


def test_standard_input_is_one_thing(pocketvlm: Any, smolvlm_bundle: Path) -> None:
    done = pocketvlm("run", smolvlm_bundle, "--image", "-", "-")
    assert done.returncode == 2
    assert "which is read once" in " ".join(done.stderr.replace("│", " ").split())


class Keyboard:
    """The command in a terminal of its own."""

    def __init__(self, url: str, home: Path) -> None:
        self._own, theirs = pty.openpty()
        command = [sys.executable, "-m", "pocketvlm", "chat", url]
        environment = {**os.environ, "XDG_CACHE_HOME": str(home), "TERM": "dumb", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(theirs)
        self.shown = ""

    def press(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def wait_for(self, text: str, limit_s: float = 150.0) -> None:
        """Wait until the screen shows a text behind all that was waited for before."""
        end_s = time.monotonic() + limit_s
        while text not in self.shown:
            assert time.monotonic() < end_s, self.shown
            if select.select([self._own], [], [], 0.2)[0]:
                self.shown += os.read(self._own, 4096).decode(errors="replace")
        self.shown = self.shown.partition(text)[2]

    def interrupt(self, typed: str = "") -> None:
        """Press Ctrl-C behind what is typed, and again as a user would, until there is a prompt.

        Python looks for signals when its wait for a key is interrupted: one that comes between the prompt and that
        wait is not seen before the next.
        """
        for _ in range(7):
            self.press(typed + "\x03")
            try:
                return self.wait_for("> ", 20.0)
            except AssertionError:
                continue
        raise AssertionError(self.shown)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)


def _own_terminal() -> None:
    """Make the terminal the one whose Ctrl-C reaches the process."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_ctrl_c_stops_an_answer_and_no_more_and_ctrl_d_ends(
    server_url: str, engine: FakeClient, tmp_path: Path
) -> None:
    engine.behaviour.answer, engine.behaviour.token_s = "one two three " * 100, 0.2
    keyboard = Keyboard(server_url, tmp_path)
    try:
        keyboard.wait_for("> ")
        keyboard.press("count\n")
        keyboard.wait_for("one two")
        keyboard.press("\x03")
        keyboard.wait_for("stopped")
        keyboard.wait_for("> ")
        engine.behaviour.answer, engine.behaviour.token_s = None, 0.0
        keyboard.interrupt("half a line")
        keyboard.press("hello\n")
        keyboard.wait_for("0 images. hello")
        keyboard.wait_for("> ")
        keyboard.press("\x04")
        assert keyboard.process.wait(120) == 0
    finally:
        keyboard.close()
    history = tmp_path / "pocketvlm" / "chat-history"
    assert "count" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
    assert [message.role for message in engine.generations[1].messages] == ["user", "assistant", "user"]
