"""One request's body can neither silence the server nor fill its memory."""

from __future__ import annotations

import pytest
from damage import Record
from payloads import BODIES, Body, chat, weighty_chat
from victim import Victim
from wire import CHAT, ask, ask_all, request_bytes

ANSWER_TIMEOUT_S = 90.0


EACH_TIME = [pytest.param("fake", body, id=f"fake: {body.name}") for body in BODIES if body.is_quick]
WHEN_ASKED = [pytest.param("shipped", body, id=body.name, marks=pytest.mark.attack) for body in BODIES]


@pytest.mark.parametrize(("server", "body"), [*EACH_TIME, *WHEN_ASKED])
def test_a_body_is_judged_before_it_costs(
    server: str, body: Body, request: pytest.FixtureRequest, record: Record
) -> None:
    victim: Victim = request.getfixturevalue(server)
    data = body.make(victim.chat_model, victim.embedding_model)
    with record.attack(f"body: {body.name}" + (" (fake engine)" if server == "fake" else ""), victim) as attack:
        attack.came(reply := ask(victim.port, body.path, data, ANSWER_TIMEOUT_S))
        attack.must(victim.is_running, f"the server ended: {victim.tail(200)}")
        attack.must(reply.status < 500, str(reply))
    assert ask(victim.port, CHAT, chat(victim.chat_model, "hello")).ending == "answered"


@pytest.mark.attack
def test_many_large_bodies_at_once_are_bounded_in_bytes(shipped: Victim, record: Record) -> None:
    requests = [request_bytes(CHAT, weighty_chat(shipped.chat_model, seed)) for seed in range(24)]
    with record.attack("bodies: 24 chats of 26 MB at once", shipped) as attack:
        attack.came(*ask_all(shipped.port, requests, 150))
        refusals = {reply.status for reply in attack.replies if reply.ending == "refused"}
        attack.must(refusals <= {429, 503}, f"legal requests were refused with {refusals}")
