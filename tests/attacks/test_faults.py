"""Faults inside the server: every request still ends, health says so, and what is sound goes on."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from damage import Attack, Record
from payloads import chat, image_part, jpeg_of_many_scans, long_chat, small_png, text_part
from victim import Victim, known
from wire import CHAT, EMBEDDINGS, Reply, ask

pytestmark = pytest.mark.attack

Serve = Callable[..., contextlib.AbstractContextManager[Victim]]
STALL_S = 3
STALL_SETTINGS = {"engine.stall_timeout_s": STALL_S, "engine.restart_after_stall_s": STALL_S}
ENDS_WITHIN_S = 20.0
"""Of a request that a stall holds up: the limit above, and a busy machine's slowness."""
PLACES = ("decoder", "vision", "sampler")


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that says what fails."""
    file = tmp_path / "fault"
    file.write_text("")
    monkeypatch.setenv("FAULT_FILE", str(file))
    return file


def under_way(victim: Victim, threads: ThreadPoolExecutor, count: int = 3) -> list[Future[Reply]]:
    """Begin streams that take seconds, and return when they run."""
    bodies = [long_chat(victim.chat_model, seed, 600, stream=True) for seed in range(count)]
    sent = [threads.submit(ask, victim.port, CHAT, body, 60.0) for body in bodies]
    victim.wait_until(lambda: victim.gauge("num_requests_running") >= count, 10)
    return sent


def ask_with_image(victim: Victim, seed: int, timeout_s: float = ENDS_WITHIN_S) -> Reply:
    """Ask about a new image, so that every station works."""
    body: dict[str, Any] = chat(victim.chat_model, [image_part(small_png(seed)), text_part("x")])
    return ask(victim.port, CHAT, body, timeout_s)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["raise", "memory"])
def test_a_failed_step_fails_its_batch_alone(kind: str, place: str, serve: Serve, fault: Path, record: Record) -> None:
    with (
        serve(program="faulty_server.py") as victim,
        ThreadPoolExecutor(8) as threads,
        record.attack(f"fault: {kind} in the {place}", victim) as attack,
    ):
        sent = under_way(victim, threads)
        fault.write_text(f"{kind} {place}")
        failed = ask_with_image(victim, 1)
        attack.must(failed.ending == "refused" and failed.status in (500, 503), str(failed))
        fault.write_text("")
        attack.came(failed, *(each.result() for each in sent))
        after = ask_with_image(victim, 2)
        attack.came(after)
        attack.must(after.ending == "answered", f"the next request: {after}")
        attack.must(victim.status("/health/ready") == 200, "not ready although the fault is over")


@pytest.mark.parametrize("place", PLACES)
def test_a_dead_worker_turns_live_red_and_leaves_the_other_model(
    place: str, serve: Serve, fault: Path, record: Record
) -> None:
    with (
        serve(program="faulty_server.py") as victim,
        ThreadPoolExecutor(8) as threads,
        record.attack(f"fault: exit in the {place}", victim) as attack,
    ):
        sent = under_way(victim, threads)
        fault.write_text(f"exit {place}")
        failed = ask_with_image(victim, 1)
        attack.must(failed.ending == "refused", str(failed))
        fault.write_text("")
        attack.came(failed, *(each.result() for each in sent))
        attack.must(victim.is_running, "the process ended")
        other = ask(victim.port, EMBEDDINGS, {"model": victim.embedding_model, "input": "x"}, ENDS_WITHIN_S)
        attack.came(other)
        attack.must(other.ending == "answered", f"the other model: {other}")


@pytest.mark.parametrize("place", ["decoder", "vision"])
def test_a_hang_ends_its_requests_and_turns_health_red(place: str, serve: Serve, fault: Path, record: Record) -> None:
    with (
        serve(known(STALL_SETTINGS), program="faulty_server.py") as victim,
        ThreadPoolExecutor(8) as threads,
        record.attack(f"fault: hang in the {place}", victim) as attack,
    ):
        sent = under_way(victim, threads) if place == "decoder" else []
        fault.write_text(f"hang {place}")
        waiting = [threads.submit(ask_with_image, victim, seed) for seed in range(4)]
        is_red = victim.wait_until(lambda: victim.status("/health/ready") == 503, ENDS_WITHIN_S)
        attack.must(is_red is not None, "ready stays green")
        ended = [each.result() for each in waiting]
        attack.came(*ended)
        attack.must(all(reply.ending == "refused" for reply in ended), f"{[str(reply) for reply in ended]}")
        asked_s = time.monotonic()
        refused = ask_with_image(victim, 9)
        attack.must(refused.status == 503, f"new work is taken: {refused}")
        attack.must(time.monotonic() - asked_s < STALL_S, "new work waits before it is refused")
        is_dead = victim.wait_until(lambda: victim.status("/health/live") == 503, ENDS_WITHIN_S)
        attack.must(is_dead is not None, "live stays green")
        other = ask(victim.port, EMBEDDINGS, {"model": victim.embedding_model, "input": "x"}, ENDS_WITHIN_S)
        attack.must(other.ending == "answered", f"the other model: {other}")
        fault.write_text("")
        attack.came(other, *(each.result() for each in sent))


def test_a_process_that_was_stopped_goes_on_as_if_nothing_were(shipped: Victim, record: Record) -> None:
    with record.attack("fault: SIGSTOP for 3 s") as attack, ThreadPoolExecutor(8) as threads:
        sent = under_way(shipped, threads)
        shipped.signal(signal.SIGSTOP)
        time.sleep(3)
        shipped.signal(signal.SIGCONT)
        attack.came(*(each.result() for each in sent))
        attack.must(all(reply.ending == "answered" for reply in attack.replies), "a stream was not whole")
        attack.must(shipped.status("/health/ready") == 200, "not ready afterwards")


def test_a_killed_helper_process_is_replaced(shipped: Victim, record: Record) -> None:
    """Whatever decodes for the server may be killed by the system for its memory."""
    from victim import descendants

    def begin_decoding(attack: Attack, threads: ThreadPoolExecutor) -> Future[Reply]:
        body = chat(shipped.chat_model, [image_part(jpeg_of_many_scans(200), "jpeg"), text_part("x")])
        sent = threads.submit(ask, shipped.port, CHAT, body, 90.0)
        shipped.wait_until(lambda: bool(descendants(shipped.pid)), 3)
        return sent

    with (
        record.attack("fault: SIGKILL of every process that helps", shipped) as attack,
        ThreadPoolExecutor(1) as threads,
    ):
        sent = begin_decoding(attack, threads)
        time.sleep(0.5)
        for pid in descendants(shipped.pid):
            with contextlib.suppress(ProcessLookupError):
                import os

                os.kill(pid, signal.SIGKILL)
        attack.came(sent.result())
        after = ask_with_image(shipped, 77)
        attack.came(after)
        attack.must(after.ending == "answered", f"the next image: {after}")
