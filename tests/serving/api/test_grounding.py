"""Answers of models that say boxes: boxes as numbers, whole and streamed, and taken back as history."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from bundle.grounding import FieldGrounding, PatchGrounding, PointGrounding
from serving.api.answers.chat import ChatCompletion, ChatCompletionChunk
from serving.fake import FakeClient

CHAT = "/v1/chat/completions"
SAID = "A<phrase> dog</phrase><object><patch_index_0000><patch_index_0003></object> ."
FOUND = {"text": "A dog .", "objects": [{"text": "dog", "start": 2, "end": 5, "boxes": [[0.25, 0.25, 0.75, 0.75]]}]}


@pytest.fixture
def grounded(engine: FakeClient) -> FakeClient:
    engine.behaviour.answer, engine.behaviour.grounding = SAID, PatchGrounding(side=2)
    return engine


def test_a_whole_answer_has_its_text_with_marks_and_its_boxes(
    api: Any, grounded: FakeClient, ask: Callable[..., dict[str, Any]]
) -> None:
    body = api.post(CHAT, ask(max_tokens=40)).json()
    ChatCompletion.model_validate(body)
    message = body["choices"][0]["message"]
    assert (message["content"], message["grounding"]) == (SAID, FOUND)
    again = api.post(CHAT, {"messages": [{"role": "user", "content": "?"}, message, {"role": "user", "content": "?"}]})
    assert again.status_code == 200


def test_a_stream_has_the_boxes_with_its_last_piece(
    api: Any, grounded: FakeClient, ask: Callable[..., dict[str, Any]]
) -> None:
    lines = api.post(CHAT, ask(stream=True, max_tokens=40)).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    for event in events:
        ChatCompletionChunk.model_validate(event)
    last = events[-1]["choices"][0]
    assert (last["finish_reason"], last["delta"]) == ("stop", {"grounding": FOUND})
    assert not any("grounding" in event["choices"][0]["delta"] for event in events[:-1])


def test_models_that_say_no_boxes_have_no_such_field(api: Any, ask: Callable[..., dict[str, Any]]) -> None:
    assert "grounding" not in api.post(CHAT, ask()).json()["choices"][0]["message"]


def test_points_are_told_without_boxes(api: Any, engine: FakeClient, ask: Callable[..., dict[str, Any]]) -> None:
    engine.behaviour.answer = 'See <points coords="1 1 250 500 2 000 999">cats</points>'
    engine.behaviour.grounding = PointGrounding(scale=1000)
    body = api.post(CHAT, ask(max_tokens=40)).json()
    ChatCompletion.model_validate(body)
    points = [{"number": 1, "at": 1.0, "x": 0.25, "y": 0.5}, {"number": 2, "at": 1.0, "x": 0.0, "y": 0.999}]
    found = {"text": "cats", "start": 4, "end": 8, "boxes": [], "points": points}
    message = body["choices"][0]["message"]
    assert (message["content"], message["grounding"]) == (
        engine.behaviour.answer,
        {"text": "See cats", "objects": [found]},
    )


def test_fields_of_a_document_come_beside_their_marks(
    api: Any, engine: FakeClient, ask: Callable[..., dict[str, Any]]
) -> None:
    marks = "<s_menu><s_nm>Tea</s_nm><sep/><s_nm>Cake</s_nm></s_menu><s_paid><yes/></s_paid>"
    engine.behaviour.answer, engine.behaviour.grounding = marks, FieldGrounding(values=("<yes/>",))
    body = api.post(CHAT, ask(max_tokens=40)).json()
    ChatCompletion.model_validate(body)
    fields = {"menu": [{"nm": "Tea"}, {"nm": "Cake"}], "paid": "yes"}
    message = body["choices"][0]["message"]
    assert message["grounding"] == {"text": "Tea Cake <yes/>", "objects": [], "fields": fields}
