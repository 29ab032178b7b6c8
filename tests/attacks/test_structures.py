"""What an answer shall be held to can neither silence the server nor fill its memory."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bystanders import bystanders
from damage import Record
from payloads import chat
from victim import Victim
from wire import CHAT, ask

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


@pytest.mark.attack
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_costly_structure_is_answered_or_refused_in_bounded_time(name: str, shipped: Victim, record: Record) -> None:
    body = chat(shipped.chat_model, "hello", structured_outputs=STRUCTURES[name])
    with record.attack(f"structure: {name}", shipped) as attack:
        attack.came(reply := ask(shipped.port, CHAT, body, ANSWER_TIMEOUT_S))
        attack.must(reply.status < 500, str(reply))


@pytest.mark.attack
def test_many_costly_structures_hold_up_nobody(shipped: Victim, record: Record) -> None:
    bodies = [
        chat(shipped.chat_model, f"hello {seed}", structured_outputs=structure)
        for seed in range(2)
        for structure in STRUCTURES.values()
    ]
    with (
        record.attack(f"structures: {len(bodies)} at once, and bystanders", shipped) as attack,
        ThreadPoolExecutor(len(bodies)) as threads,
    ):
        sent = [threads.submit(ask, shipped.port, CHAT, body, ANSWER_TIMEOUT_S) for body in bodies]
        bystanders(shipped, attack)
        attack.came(*(each.result() for each in sent))
