"""Spoilt requests, drawn from a seed: each is answered or refused in the API's own form, in bounded time and memory."""

from __future__ import annotations

import asyncio
import time

import pytest
from damage import Record
from fuzzing import ENGINES, Tally, ask_app, fault_of, peak_mb
from wire import CHAT, EMBEDDINGS

from serving.api.app import create_app
from serving.fake import FakeClient
from serving.settings import ApiSettings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow tells of a damaged TIFF
MAX_INPUT_S = 25.0
"""Decoding one image is stopped after 20 s, and a busy machine starts a process for it in seconds."""
MAX_GROWTH_MB = 900.0
"""The fake engine decodes in this process: now and then the largest picture that is taken, and its copies."""


def check(tally: Tally, grown_mb: float) -> None:
    assert not tally.bad, tally.bad[:5]
    assert tally.longest_s <= MAX_INPUT_S, tally.slowest
    assert grown_mb <= MAX_GROWTH_MB
    assert {200, 400} <= set(tally.statuses)  # else the inputs are too wild, or too tame


def test_spoilt_requests_are_refused_in_the_apis_own_form() -> None:
    before_mb = peak_mb()
    check(asyncio.run(ENGINES["fake"](1500, 1)), peak_mb() - before_mb)


FOUND = {
    "a field whose name is half a character": (EMBEDDINGS, rb'{"model": "fake-clip", "input": "x", "\ud800": null}'),
    "the same of a chat": (CHAT, rb'{"model": "m", "messages": [{"role": "user", "content": "x"}], "\ud800": 1}'),
}
"""What made the server fail once."""


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_before_is_refused(name: str) -> None:
    path, body = FOUND[name]
    status, headers, answer = asyncio.run(ask_app(create_app(FakeClient(), ApiSettings()), path, body))
    assert (status, fault_of(status, headers, answer)) == (400, "")


@pytest.mark.attack
@pytest.mark.parametrize(("engine", "count"), [("fake", 10_000), ("shipped", 4_000)])
def test_many_spoilt_requests_are(engine: str, count: int, record: Record) -> None:
    before_mb, seed = peak_mb(), int(time.time())
    with record.attack(f"fuzz: {count} inputs of seed {seed}, {engine} engine") as attack:
        tally = asyncio.run(ENGINES[engine](count, seed))
        attack.must(not tally.bad, "; ".join(tally.bad[:3]))
        attack.must(tally.longest_s <= MAX_INPUT_S, f"one took {tally.longest_s:.1f} s: {tally.slowest}")
        grown_mb = peak_mb() - before_mb
        attack.must(grown_mb <= MAX_GROWTH_MB, f"memory grew by {grown_mb:.0f} MB")


@pytest.mark.parametrize(
    ("status", "kind", "answer"),
    [
        (500, b"application/json", b'{"error": {}}'),
        (400, b"text/plain", b"Bad Request"),
        (400, b"application/json", b'{"detail": "x"}'),
        (200, b"application/json", b'{"error": {}}'),
        (200, b"text/event-stream", b'data: {"choices": []}\n\n'),
    ],
)
def test_an_answer_of_another_form_is_found(status: int, kind: bytes, answer: bytes) -> None:
    assert fault_of(status, {b"content-type": kind}, answer)
