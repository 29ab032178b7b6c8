"""What an answer shall be held to can neither silence the server nor fill its memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bystanders import bystanders
from damage import Record
from payloads import chat
from victim import Victim, running_victim, serve_command
from wire import CHAT, ask

pytestmark = pytest.mark.attack

ANSWER_TIMEOUT_S = 60.0

STRUCTURES: dict[str, dict[str, Any]] = {
    "1,500 names": {"json": {"properties": {f"p{i}": {"type": "integer"} for i in range(1500)}}},
    "a schema of 2 MB": {"json": {"enum": [f"value {i}" for i in range(100_000)]}},
    "a deep schema": {"json": json.loads('{"items":' * 300 + "{}" + "}" * 300)},
    "a string of 10^9 letters": {"json": {"type": "string", "minLength": 10**9}},
    "10^9 repeats": {"regex": "a{1000000000}"},
    "repeats of repeats": {"regex": "((((a{50}){50}){50}){50}){50}"},
    "exponentially many states": {"regex": "(a|b)*a(a|b){1000}b"},
    "exponentially long tokens": {
        "grammar": "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)) + '\nT40: "a"'
    },
    "a grammar that cannot end": {"grammar": 'start: "a" start'},
    "10,000 brackets": {"regex": "(" * 10_000 + "a" + ")" * 10_000},
    "1,024 choices": {"choice": [f"{i} {'a' * 50}" for i in range(1024)]},
}


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A server of shipped models whose answers end by themselves, for no other can be held to a structure."""
    from attack_bundles import int8_bundle

    bundles = [int8_bundle("vlm"), int8_bundle("clip")]
    name = json.loads((bundles[0] / "manifest.json").read_text(encoding="utf-8"))["name"]
    log = tmp_path_factory.mktemp("structures") / "server.log"
    with running_victim(serve_command(bundles), log, chat_model=name) as victim:
        yield victim


def test_a_plain_structure_is_answered(ending: Victim) -> None:
    reply = ask(ending.port, CHAT, chat(ending.chat_model, "hello", structured_outputs={"choice": ["red"]}))
    assert reply.ending == "answered", str(reply)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_costly_structure_is_answered_or_refused_in_bounded_time(name: str, ending: Victim, record: Record) -> None:
    body = chat(ending.chat_model, "hello", structured_outputs=STRUCTURES[name])
    with record.attack(f"structure: {name}", ending) as attack:
        attack.came(reply := ask(ending.port, CHAT, body, ANSWER_TIMEOUT_S))
        attack.must(reply.status < 500, str(reply))


def test_many_costly_structures_hold_up_nobody(ending: Victim, record: Record) -> None:
    bodies = [
        chat(ending.chat_model, f"hello {seed}", structured_outputs=structure)
        for seed in range(2)
        for structure in STRUCTURES.values()
    ]
    with (
        record.attack(f"structures: {len(bodies)} at once, and bystanders", ending) as attack,
        ThreadPoolExecutor(len(bodies)) as threads,
    ):
        sent = [threads.submit(ask, ending.port, CHAT, body, ANSWER_TIMEOUT_S) for body in bodies]
        bystanders(ending, attack)
        attack.came(*(each.result() for each in sent))
