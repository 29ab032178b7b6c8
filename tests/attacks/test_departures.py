"""Clients that leave, stall or read nothing give back what they held."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from damage import Attack, Record
from payloads import chat, image_part, long_chat, small_png, text_part
from victim import Victim
from wire import CHAT, EMBEDDINGS, ask, connect, request_bytes, reset

pytestmark = pytest.mark.attack

FREE_TIMEOUT_S = 60.0
"""A busy machine takes tens of seconds to make the kilobytes that a reader does not take."""
STALLED_S = 2
SMALL_BUFFER_BYTES = 2048


def leave(port: int, body: Mapping[str, Any], path: str, wait_s: float, cut: slice = slice(None)) -> None:
    """Send a request, or a part of it, and reset the connection."""
    connection = connect(port)
    connection.sendall(request_bytes(path, body)[cut])
    time.sleep(wait_s)
    reset(connection)


def settles(victim: Victim, attack: Attack) -> None:
    """Places become free, and the next request is answered."""
    free_s = victim.wait_until(victim.is_idle, FREE_TIMEOUT_S)
    attack.must(free_s is not None, f"places are held {FREE_TIMEOUT_S:.0f} s after their clients left")
    attack.came(ask(victim.port, CHAT, chat(victim.chat_model, "hello")))


def test_clients_that_leave_in_every_phase_hold_nothing(shipped: Victim, record: Record) -> None:
    rng, before = random.Random(7), shipped.figures()
    texts = {"model": shipped.embedding_model, "input": ["a red circle"] * 200}
    with record.attack("leaves: 120 clients, in every phase", shipped) as attack:
        for turn in range(120):
            picture = [image_part(small_png(turn)), text_part(f"t {turn}")]
            long = {**long_chat(shipped.chat_model, turn), "stream": bool(turn % 2)}
            body = texts if turn % 4 == 3 else chat(shipped.chat_model, picture) if turn % 4 == 2 else long
            end = rng.randrange(1, 400) if turn % 5 == 0 else None
            leave(shipped.port, body, EMBEDDINGS if turn % 4 == 3 else CHAT, rng.random() * 0.2, slice(end))
        settles(shipped, attack)
        time.sleep(1)
        after = shipped.figures()
        attack.must(after.descriptors <= before.descriptors + 4, f"descriptors {before} -> {after}")
        attack.must(after.threads <= before.threads + 4, f"threads {before} -> {after}")


Serve = Callable[..., contextlib.AbstractContextManager[Victim]]


@pytest.mark.parametrize("kind", ["streams", "whole answers"])
def test_a_client_that_reads_nothing_loses_its_connection(kind: str, serve: Serve, record: Record) -> None:
    """The server's own send buffer is small here, so that a few hundred kilobytes are felt as megabytes would be."""
    with serve({"api.stalled_client_s": STALLED_S}, "narrow_server.py") as victim:
        stream = long_chat(victim.chat_model, 2, stream=True)
        whole = {"model": victim.embedding_model, "input": ["a red circle"] * 256}
        path, body = (CHAT, stream) if kind == "streams" else (EMBEDDINGS, whole)
        before = victim.figures().descriptors
        with (
            record.attack(f"leaves: 3 clients that read nothing of {kind}", victim) as attack,
            contextlib.ExitStack() as stack,
        ):
            for _ in range(3):
                connection = stack.enter_context(connect(victim.port, SMALL_BUFFER_BYTES))
                connection.sendall(request_bytes(path, body, "") * 2)
            time.sleep(1)
            settles(victim, attack)
            closed = victim.wait_until(lambda: victim.figures().descriptors <= before + 1, FREE_TIMEOUT_S)
            now = victim.figures().descriptors
            attack.must(closed is not None, f"descriptors {before} -> {now}, {FREE_TIMEOUT_S:.0f} s later")
