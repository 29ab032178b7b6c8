"""The OpenAPI document says what is so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from bundle.errors import DeadlineError, EngineDeadError, OverloadedError
from serving.api.answers.answer import ErrorAnswer
from serving.api.answers.chat import ChatCompletionChunk
from serving.api.answers.server import HealthAnswer
from serving.api.openapi import ROUTES
from serving.fake import FakeClient
from serving.protocol import Health

CHAT = "/v1/chat/completions"


@pytest.fixture
def document(api: Any) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/openapi.json").json()
    return found


def operation(document: dict[str, Any], path: str) -> dict[str, Any]:
    (found,) = document["paths"][path].values()
    return found


def references(value: Any) -> Iterator[str]:
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from references(each)
    if isinstance(value, dict) and isinstance(value.get("$ref"), str):
        yield value["$ref"]


def test_every_reference_is_defined_and_every_definition_used(document: dict[str, Any]) -> None:
    used = {name.removeprefix("#/components/schemas/") for name in references(document)}
    assert used == set(document["components"]["schemas"])


def test_nothing_says_422_which_is_never_sent(document: dict[str, Any]) -> None:
    assert "422" not in json.dumps(document)


CLEAR = "/v1/cache/clear"
ALLOWED = {CLEAR, "/v1/prefixes", "/v1/prefixes/{name}", "/v1/models/load", "/v1/models/unload"}
"""Where a setting allows them; test_prefixes.py and test_models.py hold the last four to the document."""


def test_every_route_is_described_once(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == set(ROUTES) - ALLOWED


def test_the_route_that_a_setting_allows_is_described_where_it_is(document: dict[str, Any], make_caller: Any) -> None:
    cleared = []
    api = make_caller(lambda: cleared.append(True))
    assert set(api.get("/openapi.json").json()["paths"]) == {*document["paths"], CLEAR}
    assert api.get("/docs").status_code == 200
    assert ROUTES[CLEAR].answer is not None
    holds(ROUTES[CLEAR].answer, api.post(CLEAR, {}).text)
    assert cleared


def test_the_bodies_tell_of_every_field_and_take_no_other(document: dict[str, Any]) -> None:
    chat = document["components"]["schemas"]["ChatRequest"]
    assert {"model", "messages", "temperature", "tools"} <= set(chat["properties"])
    assert chat["additionalProperties"] is False
    assert operation(document, CHAT)["requestBody"]["required"]


def test_the_limits_of_this_server_are_told(make_caller: Any) -> None:
    description = make_caller(max_images=7).get("/openapi.json").json()["info"]["description"]
    assert "max_images 7" in description


@pytest.fixture
def whole_answers(api: Any, ask: Callable[..., Any], png: bytes, image_part: Any) -> dict[str, Any]:
    """A real answer of each documented route, by path."""
    classified = {"model": "fake-clip", "images": [image_part(png)], "labels": ["a", "b"]}
    return {
        CHAT: api.post(CHAT, ask()),
        "/v1/completions": api.post("/v1/completions", {"prompt": "a"}),
        "/v1/rerank": api.post("/v1/rerank", {"query": "a", "documents": ["b"]}),
        "/v1/score": api.post("/v1/score", {"text_1": "a", "text_2": ["b"]}),
        "/v1/responses": api.post("/v1/responses", {"input": "a"}),
        "/v1/messages": api.post("/v1/messages", {"max_tokens": 9, **ask()}),
        "/v1/messages/count_tokens": api.post("/v1/messages/count_tokens", ask()),
        "/tokenize": api.post("/tokenize", {"model": "fake-vlm", "prompt": "a"}),
        "/detokenize": api.post("/detokenize", {"model": "fake-vlm", "tokens": [1]}),
        "/v1/embeddings": api.post("/v1/embeddings", {"model": "fake-clip", "input": ["a"]}),
        "/pooling": api.post("/pooling", {"model": "fake-clip", "input": ["a"]}),
        "/v1/classify": api.post("/v1/classify", classified),
        "/v1/models/{name}": api.get("/v1/models/fake-vlm"),
        **{
            path: api.get(path)
            for path in ROUTES
            if path not in ALLOWED and "{" not in path and ROUTES[path].request is None
        },
    }


def holds(model: type[BaseModel], text: str) -> BaseModel:
    return model.model_validate_json(text, strict=True)


def test_real_answers_are_what_the_document_says(whole_answers: dict[str, Any]) -> None:
    assert set(whole_answers) == set(ROUTES) - ALLOWED
    for path, response in whole_answers.items():
        answer = ROUTES[path].answer
        assert response.status_code == 200
        if answer is not None:
            holds(answer, response.text)


def test_a_real_streams_events_are_what_the_document_says(api: Any, ask: Callable[..., Any]) -> None:
    text = api.post(CHAT, ask(stream=True, stream_options={"include_usage": True})).text
    *events, last = re.findall(r"data: (.*)\n\n", text)
    assert [holds(ChatCompletionChunk, event) for event in events]
    assert last == "[DONE]"


@pytest.mark.parametrize(
    "failure", [OverloadedError("full"), EngineDeadError("dead"), DeadlineError("late"), MemoryError()]
)
def test_real_failures_have_a_documented_status_and_form(
    api: Any, engine: FakeClient, ask: Callable[..., Any], document: dict[str, Any], failure: Exception
) -> None:
    engine.behaviour.failure = failure
    response = api.post(CHAT, ask())
    assert str(response.status_code) in operation(document, CHAT)["responses"]
    holds(ErrorAnswer, response.text)


@pytest.mark.parametrize("body", [{}, {"model": "nobody", "messages": [{"role": "user", "content": "a"}]}])
def test_real_refusals_have_a_documented_status_and_form(api: Any, document: dict[str, Any], body: Any) -> None:
    response = api.post(CHAT, body)
    assert str(response.status_code) in operation(document, CHAT)["responses"]
    holds(ErrorAnswer, response.text)


def test_a_red_probe_is_what_the_document_says(api: Any, engine: FakeClient, document: dict[str, Any]) -> None:
    engine.behaviour.health = Health(is_ready=False, reason="worker died", is_alive=False)
    for path in ("/health/live", "/health/ready"):
        response = api.get(path)
        assert str(response.status_code) in operation(document, path)["responses"]
        holds(HealthAnswer, response.text)


def test_an_answer_sent_back_as_history_is_taken(api: Any, ask: Callable[..., Any]) -> None:
    chat = ask("hello")
    chat["messages"] += [api.post(CHAT, chat).json()["choices"][0]["message"], {"role": "user", "content": "and?"}]
    assert api.post(CHAT, chat).status_code == 200


def test_schemas_have_the_names_of_their_classes_alone(document: dict[str, Any]) -> None:
    assert [name for name in document["components"]["schemas"] if "__" in name] == []
