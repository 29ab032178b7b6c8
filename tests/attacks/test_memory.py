"""A machine that has too little is told as what it is, and never as the caller's mistake."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attack_bundles import int8_bundle
from damage import Record
from payloads import chat, image_part, large_png, text_part
from victim import ROOT, Victim, free_port
from wire import CHAT, ask, ask_all, request_bytes

pytestmark = pytest.mark.attack

LOAD_TIMEOUT_S = 60.0
Serve = Callable[..., contextlib.AbstractContextManager[Victim]]


@pytest.mark.parametrize("limit_mb", [1200, 1400])
def test_lack_of_memory_is_not_the_callers_damaged_image(limit_mb: int, serve: Serve, record: Record) -> None:
    limits = {resource.RLIMIT_AS: limit_mb << 20}
    with serve(limits=limits) as victim, record.attack(f"memory: {limit_mb} MB of addresses", victim) as attack:
        bodies = [chat(victim.chat_model, [image_part(large_png(seed)), text_part("x")]) for seed in range(8)]
        attack.came(*ask_all(victim.port, [request_bytes(CHAT, body) for body in bodies], 90))
        codes = {reply.code for reply in attack.replies if reply.ending == "refused"}
        attack.must("invalid_image" not in codes, f"sound images were refused with {codes}")
        attack.must(victim.is_running, f"the process ended: {victim.tail(300)}")
        after = ask(victim.port, CHAT, chat(victim.chat_model, "hello"))
        attack.came(after)
        attack.must(after.ending == "answered", f"the next request: {after}")


@pytest.mark.parametrize("limit_mb", [500, 800, 900, 1000])
def test_too_little_to_load_is_one_line(limit_mb: int, serve: Serve, record: Record) -> None:
    with (
        serve(limits={resource.RLIMIT_AS: limit_mb << 20}, is_awaited=False) as victim,
        record.attack(f"memory: {limit_mb} MB of addresses to load in") as attack,
    ):
        victim.wait_until(lambda: not victim.is_running or victim.status("/health/ready", 2) == 200, LOAD_TIMEOUT_S)
        attack.must("Traceback" not in victim.tail(20_000), f"a traceback: {victim.tail(200)}")


@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-", ">&- 2>&-", "<&-"])
def test_a_server_whose_output_is_lost_serves(redirection: str, record: Record) -> None:
    port = free_port()
    line = [sys.executable, "-m", "pocketvlm", "serve", str(int8_bundle("clip")), "--port", str(port)]
    with record.attack(f"output: {redirection}") as attack:
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" {redirection}', "bash", *line], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        victim = Victim(process, port, Path("/dev/null"))
        try:
            victim.wait_until_ready()
            attack.must(victim.status("/v1/models") == 200, "it does not answer")
        except RuntimeError as error:
            attack.must(False, str(error))
        finally:
            victim.kill()
