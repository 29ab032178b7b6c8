"""Other clients, who ask for little while an attack goes on."""

from __future__ import annotations

from damage import Attack
from payloads import chat
from victim import Victim
from wire import CHAT, EMBEDDINGS, ask

BYSTANDER_TIMEOUT_S = 30.0
MAX_BYSTANDER_S = 10.0
"""For an answer of milliseconds: on two cores that decode for others, and that other programs use too."""
ATTACKER_TIMEOUT_S = 120.0


def bystanders(victim: Victim, attack: Attack) -> None:
    """Ask what costs milliseconds, as another client would, and count the answers."""
    for what, path, body in (
        ("a chat without images", CHAT, chat(victim.chat_model, "hello")),
        ("an embedding of a text", EMBEDDINGS, {"model": victim.embedding_model, "input": "a red circle"}),
    ):
        reply = ask(victim.port, path, body, BYSTANDER_TIMEOUT_S)
        attack.came(reply)
        attack.must(reply.ending == "answered" and reply.seconds <= MAX_BYSTANDER_S, f"{what}: {reply}")
