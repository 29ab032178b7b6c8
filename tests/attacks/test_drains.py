"""A server that is told to stop tells its clients so, and is gone in time."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from damage import Attack, Record
from payloads import chat, image_part, jpeg_of_many_scans, long_chat, text_part
from victim import Victim
from wire import CHAT, Reply, ask, connect

Serve = Callable[..., contextlib.AbstractContextManager[Victim]]
DRAIN_S = 1
EXIT_WITHIN_S = 12.0
"""After the drain: a busy machine unloads models and ends an interpreter."""
BEGUN = {
    "half a head": b"POST /v1/chat/completions HTTP/1.1\r\n",
    "half a body": b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 99\r\n\r\n",
}


def stops(victim: Victim, attack: Attack, *numbers: signal.Signals, within_s: float = DRAIN_S + EXIT_WITHIN_S) -> None:
    """Send signals; the process must end in time, and say nothing of its inside."""
    for number in numbers:
        victim.signal(number)
        time.sleep(0.2)
    try:
        code = victim.process.wait(within_s)
    except subprocess.TimeoutExpired:
        attack.must(False, f"alive {within_s:.0f} s after {numbers[0].name}")
        return
    attack.must(code in (0, 130, 143, -signal.SIGTERM), f"exit code {code}")
    attack.must("Traceback" not in victim.tail(20_000), f"a traceback: {victim.tail(300)}")


def under_way(victim: Victim, threads: ThreadPoolExecutor, num_each: int) -> list[Callable[[], Reply]]:
    """Begin streams and whole answers, more than there are slots, that take longer than the drain."""
    bodies = [long_chat(victim.chat_model, 0, 1900, stream=index % 2 == 0) for index in range(2 * num_each)]
    sent = [threads.submit(ask, victim.port, CHAT, body, 60.0) for body in bodies]
    victim.wait_until(lambda: victim.gauge("num_requests_") >= 2 * num_each, 10)
    return [each.result for each in sent]


@pytest.mark.attack
@pytest.mark.parametrize("num_signals", [1, 2])
def test_what_the_drain_cuts_is_told_so(num_signals: int, serve: Serve, record: Record) -> None:
    with serve({"drain_timeout_s": DRAIN_S}) as victim, ThreadPoolExecutor(8) as threads:
        name = f"drain: {DRAIN_S} s for 8 long answers, SIGTERM" + " twice" * (num_signals - 1)
        with record.attack(name) as attack:
            results = under_way(victim, threads, 4)
            stops(victim, attack, *[signal.SIGTERM] * num_signals)
            attack.came(*(result() for result in results))


@pytest.mark.attack
def test_what_fits_the_drain_is_answered_whole(serve: Serve, record: Record) -> None:
    with (
        serve({"drain_timeout_s": 30}) as victim,
        ThreadPoolExecutor(8) as threads,
        record.attack("drain: 30 s for answers of a second") as attack,
    ):
        sent = [
            threads.submit(ask, victim.port, CHAT, long_chat(victim.chat_model, seed, 300, stream=seed % 2 == 0))
            for seed in range(6)
        ]
        victim.wait_until(lambda: victim.gauge("num_requests_running") > 0, 10)
        stops(victim, attack, signal.SIGTERM, within_s=30 + EXIT_WITHIN_S)
        attack.came(*(each.result() for each in sent))
        attack.must(all(reply.ending == "answered" for reply in attack.replies), "an answer was cut")


@pytest.mark.attack
def test_an_image_that_decodes_for_minutes_does_not_keep_the_process(serve: Serve, record: Record) -> None:
    with serve({"drain_timeout_s": DRAIN_S}) as victim, ThreadPoolExecutor(2) as threads:
        body = chat(victim.chat_model, [image_part(jpeg_of_many_scans(2000), "jpeg"), text_part("x")])
        with record.attack("drain: two JPEGs of 2,000 scans under way") as attack:
            sent = [threads.submit(ask, victim.port, CHAT, body, 60.0) for _ in range(2)]
            time.sleep(1)
            stops(victim, attack, signal.SIGTERM)
            victim.kill()
            attack.came(*(each.result() for each in sent))


@pytest.mark.attack
@pytest.mark.parametrize("name", BEGUN)
def test_a_request_that_never_ends_does_not_keep_the_process(name: str, serve: Serve, record: Record) -> None:
    with serve({"drain_timeout_s": DRAIN_S}) as victim, connect(victim.port) as connection:
        connection.sendall(BEGUN[name])
        time.sleep(0.3)
        with record.attack(f"drain: {name} is under way") as attack:
            stops(victim, attack, signal.SIGTERM)


@pytest.mark.attack
@pytest.mark.parametrize("after_s", [0.3, 1.5, 3.0])
def test_a_server_that_is_loading_stops_too(after_s: float, serve: Serve, record: Record) -> None:
    with serve(is_awaited=False) as victim, record.attack(f"drain: SIGTERM {after_s:g} s after the start") as attack:
        time.sleep(after_s)
        stops(victim, attack, signal.SIGTERM)
