"""The field `kv`: what is taken, what reaches the engine, what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from quant.kv.table import POLICIES
from serving.fake import FakeClient
from serving.protocol import KVCompression

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("budget", [0.2, 1, 1.0])
def test_every_policy_reaches_the_engine_with_its_budget(
    api: Any, ask: Any, engine: FakeClient, policy: str, budget: float
) -> None:
    response = api.post(CHAT, ask(kv={"policy": policy, "budget": budget}))
    assert response.status_code == 200, response.text
    assert engine.generations[-1].kv == KVCompression(policy, budget)


@pytest.mark.parametrize("fields", [{}, {"kv": None}])
def test_a_request_that_says_nothing_leaves_it_to_the_server(
    api: Any, ask: Any, engine: FakeClient, fields: dict[str, Any]
) -> None:
    assert api.post(CHAT, ask(**fields)).status_code == 200
    assert engine.generations[-1].kv is None


def test_usage_tells_rows_before_and_after(api: Any, ask: Any) -> None:
    body = api.post(CHAT, ask("a b c d e f g h i j", kv={"policy": "snapkv", "budget": 0.5})).json()
    details = body["usage"]["prompt_tokens_details"]
    assert (details["cache_rows_before"], details["cache_rows_after"]) == (10, 5)


REFUSED: dict[str, tuple[Any, str, str]] = {
    "an unknown policy": ({"policy": "best", "budget": 0.5}, "kv.policy", "one of random, uniform, streaming-llm"),
    "no policy": ({"budget": 0.5}, "kv.policy", "required"),
    "no budget": ({"policy": "snapkv"}, "kv.budget", "required"),
    "a budget of 0": ({"policy": "snapkv", "budget": 0}, "kv.budget", "greater than 0"),
    "a negative budget": ({"policy": "snapkv", "budget": -0.1}, "kv.budget", "greater than 0"),
    "a budget above 1": ({"policy": "snapkv", "budget": 1.01}, "kv.budget", "less than or equal to 1"),
    "a budget in words": ({"policy": "snapkv", "budget": "0.5"}, "kv.budget", "number"),
    "a policy by number": ({"policy": 3, "budget": 0.5}, "kv.policy", "string"),
    "an unknown key": ({"policy": "snapkv", "budget": 0.5, "window": 3}, "kv.window", "unknown"),
    "no object": ("snapkv", "kv", "dictionary"),
}


@pytest.mark.parametrize(("kv", "param", "said"), REFUSED.values(), ids=REFUSED)
def test_what_means_nothing_is_a_400_that_names_the_field(
    api: Any, ask: Any, engine: FakeClient, kv: Any, param: str, said: str
) -> None:
    response = api.post(CHAT, ask(kv=kv))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, "invalid_parameter")
    assert said in error["message"]
    assert engine.generations == []
