"""OpenAI's newer API: bodies and streams."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from bundle.errors import EngineDeadError, OverloadedError
from serving.api.answers.responses import ResponseAnswer, ResponseEvent
from serving.fake import FakeClient
from serving.protocol import ImagePart, Message, SamplingParams, Structure, TextPart, Tool, ToolCall

PATH = "/v1/responses"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "description": "Tells it.", "parameters": SCHEMA}
CALL = ToolCall("", "weather", '{"city": "Bern"}').text
CALLED = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "Bern"}'}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "7"}


def body(given: Any = "one two", **fields: Any) -> dict[str, Any]:
    return {"model": "fake-vlm", "input": given, **fields}


def events_of(text: str) -> list[dict[str, Any]]:
    found = re.findall(r"event: ([\w.]+)\ndata: (.*)\n\n", text)
    events = [json.loads(data) for _, data in found]
    for event in events:
        ResponseEvent.model_validate(event)
    assert [event["type"] for event in events] == [name for name, _ in found]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def test_an_answer_is_a_response(api: Any, engine: FakeClient) -> None:
    told = api.post(PATH, body(instructions="Be brief.", max_output_tokens=9)).json()
    ResponseAnswer.model_validate(told)
    [message] = told["output"]
    assert message["content"] == [
        {"type": "output_text", "text": "0 images. one two", "annotations": [], "logprobs": []}
    ]
    assert (told["status"], told["store"], told["instructions"]) == ("completed", False, "Be brief.")
    assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == (4, 4)
    assert engine.generations[0].messages == (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (TextPart("one two"),)),
    )
    assert engine.generations[0].sampling == SamplingParams(max_tokens=9)


def test_a_conversation_reaches_the_engine(api: Any, engine: FakeClient, png: bytes, image_part: Any) -> None:
    url = image_part(png)["image_url"]["url"]
    said = {"type": "output_text", "text": "b", "annotations": [], "logprobs": []}
    items = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "input_image", "image_url": url, "detail": "auto"}, text("a")]},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [said]},
        CALLED,
        {**CALLED, "call_id": "d", "id": "x", "status": "completed"},
        RESULT,
        {**RESULT, "call_id": "d", "output": [text("8")]},
        {"role": "user", "content": "c"},
    ]
    assert api.post(PATH, body(items)).status_code == 200
    assert engine.generations[0].messages == (
        Message("system", (TextPart("s"),)),
        Message("user", (ImagePart(png), TextPart("a"))),
        Message(
            "assistant",
            (TextPart("b"),),
            (ToolCall("c", "weather", '{"city": "Bern"}'), ToolCall("d", "weather", '{"city": "Bern"}')),
        ),
        Message("tool", (TextPart("7"),)),
        Message("tool", (TextPart("8"),)),
        Message("user", (TextPart("c"),)),
    )


def text(text: str) -> dict[str, str]:
    return {"type": "input_text", "text": text}


def test_text_behind_a_call_is_of_the_same_message(api: Any, engine: FakeClient) -> None:
    items = [{"role": "user", "content": "a"}, CALLED, {"role": "assistant", "content": "b"}, RESULT]
    assert api.post(PATH, body(items)).status_code == 200
    assert engine.generations[0].messages[1] == Message(
        "assistant", (TextPart("b"),), (ToolCall("c", "weather", '{"city": "Bern"}'),)
    )


def test_sampling_and_structure_reach_the_engine(api: Any, engine: FakeClient) -> None:
    wanted = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    fields = {"temperature": 0.5, "top_p": 0.9, "text": wanted, "include": ["message.output_text.logprobs"]}
    told = api.post(PATH, body(**fields, top_logprobs=2)).json()
    assert engine.generations[0].sampling == SamplingParams(
        temperature=0.5, top_p=0.9, top_logprobs=2, structure=Structure("json", json.dumps(SCHEMA), "text.format")
    )
    assert told["text"] == {**wanted, "format": {**wanted["format"], "description": None}}
    [entry] = told["output"][0]["content"][0]["logprobs"]
    assert (entry["token"], len(entry["top_logprobs"])) == ("{}", 2)


@pytest.mark.parametrize(
    ("choice", "is_required", "most"),
    [(None, False, 16), ("required", True, 16), ({"type": "function", "name": "weather"}, True, 1)],
)
def test_functions_reach_the_engine(api: Any, engine: FakeClient, choice: Any, is_required: bool, most: int) -> None:
    assert api.post(PATH, body(tools=[WEATHER], tool_choice=choice)).status_code == 200
    assert engine.generations[0].tools == (Tool("weather", "Tells it.", json.dumps(SCHEMA)),)
    structure = engine.generations[0].sampling.structure
    assert structure is not None
    asked = json.loads(structure.text)
    assert (asked["is_required"], asked["most"]) == (is_required, most)


def anonymous(response: dict[str, Any]) -> dict[str, Any]:
    items = [{key: each for key, each in item.items() if "id" not in key} for item in response["output"]]
    return {**response, "id": "", "created_at": 0, "output": items}


@pytest.mark.parametrize("answer", ["Hello.", CALL, f"I look. {CALL}\n{CALL} Done."])
@pytest.mark.parametrize("fields", [{}, {"max_output_tokens": 5}, {"include": ["message.output_text.logprobs"]}])
def test_a_stream_builds_the_whole_response(api: Any, engine: FakeClient, answer: str, fields: dict[str, Any]) -> None:
    engine.behaviour.answer = answer
    whole = api.post(PATH, body(tools=[WEATHER], **fields)).json()
    ResponseAnswer.model_validate(whole)
    *events, last = events_of(api.post(PATH, body(tools=[WEATHER], stream=True, **fields)).text)
    assert last["type"] == f"response.{whole['status']}"
    assert anonymous(last["response"]) == anonymous(whole)
    built: dict[int, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            built[event["output_index"]] = built.get(event["output_index"], "") + event["delta"]
        if event["type"] == "response.output_item.done":
            item = last["response"]["output"][event["output_index"]]
            assert event["item"] == item
            told = item["arguments"] if "arguments" in item else item["content"][0]["text"]
            assert built[event["output_index"]] == told


def test_events_come_in_openais_order(api: Any, engine: FakeClient) -> None:
    engine.behaviour.answer = f"Look. {CALL}"
    kinds = [event["type"] for event in events_of(api.post(PATH, body(tools=[WEATHER], stream=True)).text)]
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.completed",
    ]


def test_a_cut_response_is_incomplete(api: Any) -> None:
    told = api.post(PATH, body("a b c", max_output_tokens=2)).json()
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert told["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"mood": 1}, "mood"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0.type"),
        (
            {"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
            "input.0.content",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
            "input.0.content.0.image_url",
        ),
        ({"input": [RESULT]}, "input.0.call_id"),
        ({"input": [CALLED]}, "input"),
        ({"input": [CALLED, {"role": "user", "content": "a"}]}, "input.1"),
        ({"input": [{**CALLED, "arguments": "{"}, RESULT]}, "input.0.function.arguments"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(api: Any, fields: dict[str, Any], param: str) -> None:
    response = api.post(PATH, {**body(), **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")


def test_why_nothing_is_stored_is_told(api: Any) -> None:
    message = api.post(PATH, body(previous_response_id="resp_1")).json()["error"]["message"]
    assert "send the whole conversation in input" in message


def test_what_clients_always_send_is_taken(api: Any) -> None:
    fields = {
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "truncation": "disabled",
        "service_tier": "auto",
        "metadata": {"a": "b"},
        "previous_response_id": None,
    }
    assert api.post(PATH, body(**fields)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_has_its_status(api: Any, engine: FakeClient, stream: bool) -> None:
    engine.behaviour.failure = OverloadedError("full")
    response = api.post(PATH, body(stream=stream))
    assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")


def test_a_failure_inside_a_stream_is_its_last_event(api: Any, engine: FakeClient) -> None:
    engine.behaviour.failure, engine.behaviour.failure_after_tokens = EngineDeadError("worker died"), 2
    last = events_of(api.post(PATH, body(stream=True)).text)[-1]
    assert (last["type"], last["code"], last["message"]) == ("error", "engine_dead", "worker died")
