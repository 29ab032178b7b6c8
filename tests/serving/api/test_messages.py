"""Anthropic's API: bodies, streams and errors in its own form."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from bundle.errors import DeadlineError, EngineDeadError, OverloadedError, PocketVLMError
from serving.api.answers.messages import MessageAnswer, MessageErrorAnswer, MessageEvent
from serving.fake import FakeClient
from serving.protocol import ImagePart, Message, SamplingParams, Structure, TextPart, Tool, ToolCall

PATH = "/v1/messages"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}
CALL = ToolCall("", "weather", '{"city": "Bern"}').text
USE = {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Bern"}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "7"}


def body(content: Any = "one two", **fields: Any) -> dict[str, Any]:
    messages = fields.pop("messages", [{"role": "user", "content": content}])
    return {"model": "fake-vlm", "max_tokens": 20, "messages": messages, **fields}


def events_of(text: str) -> list[dict[str, Any]]:
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)
    events = [json.loads(data) for _, data in found]
    for event in events:
        MessageEvent.model_validate(event)
    assert [event["type"] for event in events] == [name for name, _ in found]
    return events


def gathered(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Put a stream together as clients do."""
    message, texts = events[0]["message"], list[str]()
    for event in events[1:]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
            texts.append("")
        elif event["type"] == "content_block_delta":
            texts[event["index"]] += event["delta"].get("text", "") + event["delta"].get("partial_json", "")
        elif event["type"] == "message_delta":
            message |= {**event["delta"], "usage": event["usage"]}
    for block, text in zip(message["content"], texts, strict=True):
        block |= {"text": text} if block["type"] == "text" else {"input": json.loads(text)}
    return message


def test_an_answer_is_a_message(api: Any, engine: FakeClient) -> None:
    found = api.post(PATH, body(), headers={"anthropic-version": "2023-06-01", "anthropic-beta": "x", "x-api-key": "k"})
    MessageAnswer.model_validate(found.json())
    told = found.json()
    assert told["content"] == [{"type": "text", "text": "0 images. one two"}]
    assert (told["stop_reason"], told["stop_sequence"], told["role"], told["model"]) == (
        "end_turn",
        None,
        "assistant",
        "fake-vlm",
    )
    assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == (2, 4)
    assert engine.generations[0].sampling == SamplingParams(max_tokens=20)


def test_a_conversation_reaches_the_engine(api: Any, engine: FakeClient, png: bytes) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png).decode()}
    kept = {"cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "a", **kept}]},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}, USE]},
        {"role": "user", "content": [RESULT, {"type": "text", "text": "c"}]},
    ]
    assert api.post(PATH, body(messages=messages, system=[{"type": "text", "text": "s", **kept}])).status_code == 200
    assert engine.generations[0].messages == (
        Message("system", (TextPart("s"),)),
        Message("user", (ImagePart(png), TextPart("a"))),
        Message("assistant", (TextPart("b"),), (ToolCall("t", "weather", '{"city": "Bern"}'),)),
        Message("tool", (TextPart("7"),)),
        Message("user", (TextPart("c"),)),
    )


def test_a_failed_result_says_so(api: Any, engine: FakeClient) -> None:
    messages = [*body()["messages"], {"role": "assistant", "content": [USE]}]
    blocks = [{**RESULT, "content": [{"type": "text", "text": "no"}], "is_error": True}]
    assert api.post(PATH, body(messages=[*messages, {"role": "user", "content": blocks}])).status_code == 200
    assert engine.generations[0].messages[-1] == Message("tool", (TextPart("Error: no"),))


def test_sampling_reaches_the_engine(api: Any, engine: FakeClient) -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop_sequences": ["x", "y"], "metadata": {"user_id": "u"}}
    assert api.post(PATH, body(**fields)).status_code == 200
    assert engine.generations[0].sampling == SamplingParams(20, 0.5, 0.9, 7, stop=("x", "y"))
    wanted = {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert api.post(PATH, body(output_config=wanted)).status_code == 200
    assert engine.generations[1].sampling.structure == Structure("json", json.dumps(SCHEMA), "output_config")


@pytest.mark.parametrize(
    ("choice", "is_required", "most"),
    [
        (None, False, 16),
        ({"type": "auto", "disable_parallel_tool_use": True}, False, 1),
        ({"type": "any"}, True, 16),
        ({"type": "tool", "name": "weather"}, True, 1),
    ],
)
def test_functions_reach_the_engine(
    api: Any, engine: FakeClient, choice: dict[str, Any] | None, is_required: bool, most: int
) -> None:
    assert api.post(PATH, body(tools=[WEATHER], tool_choice=choice)).status_code == 200
    assert engine.generations[0].tools == (Tool("weather", "Tells it.", json.dumps(SCHEMA)),)
    structure = engine.generations[0].sampling.structure
    assert structure is not None
    asked = json.loads(structure.text)
    assert (asked["is_required"], asked["most"], structure.is_optional) == (is_required, most, not is_required)


def test_no_choice_tells_of_no_function(api: Any, engine: FakeClient) -> None:
    assert api.post(PATH, body(tools=[WEATHER], tool_choice={"type": "none"})).status_code == 200
    assert engine.generations[0].tools == ()


def test_calls_are_blocks(api: Any, engine: FakeClient) -> None:
    engine.behaviour.answer = f"I look.\n{CALL}\n{CALL}"
    told = api.post(PATH, body(tools=[WEATHER])).json()
    MessageAnswer.model_validate(told)
    text, first, second = told["content"]
    assert text == {"type": "text", "text": "I look."}
    assert (first["name"], first["input"], told["stop_reason"]) == ("weather", {"city": "Bern"}, "tool_use")
    assert first["id"] != second["id"]


def test_a_cut_call_has_the_arguments_that_are_there(api: Any, engine: FakeClient) -> None:
    engine.behaviour.answer = CALL
    told = api.post(PATH, body(tools=[WEATHER], max_tokens=5)).json()
    assert (told["content"][0]["input"], told["stop_reason"]) == ({}, "max_tokens")


@pytest.mark.parametrize("arguments", ["{bad}", '{"city": NaN}', '{"city": "Bern",}'])
def test_a_call_whose_arguments_are_no_json_is_text(api: Any, engine: FakeClient, arguments: str) -> None:
    engine.behaviour.answer = f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>'
    response = api.post(PATH, body(tools=[WEATHER], stop_sequences=["never"]))
    told = response.json()
    assert response.status_code == 200, response.text
    MessageAnswer.model_validate(told)
    assert [block["type"] for block in told["content"]] == ["text"]
    assert arguments in told["content"][0]["text"]
    assert told["stop_reason"] == "end_turn"


@pytest.mark.parametrize("answer", ["Hello.", CALL, f"I look. {CALL}\n{CALL} Done."])
def test_a_streamed_message_is_the_whole_one(api: Any, engine: FakeClient, answer: str) -> None:
    engine.behaviour.answer = answer
    whole = api.post(PATH, body(tools=[WEATHER])).json()
    events = events_of(api.post(PATH, body(tools=[WEATHER], stream=True)).text)
    assert events[-1] == {"type": "message_stop"}
    told = gathered(events)
    for message in (told, whole):
        message["id"] = ""
        for block in message["content"]:
            block.pop("id", None)
    assert told == whole


def test_blocks_open_and_close_one_after_another(api: Any, engine: FakeClient) -> None:
    engine.behaviour.answer = f"I look. {CALL}"
    kinds = [event["type"] for event in events_of(api.post(PATH, body(tools=[WEATHER], stream=True)).text)]
    block = r"content_block_start (content_block_delta )+content_block_stop "
    assert re.fullmatch(rf"message_start ({block}){{2}}message_delta message_stop ", " ".join(kinds) + " ")


def test_the_stop_text_that_ended_an_answer_is_told(api: Any) -> None:
    told = api.post(PATH, body("a b c", stop_sequences=["zz", " b"])).json()
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", " b")
    events = events_of(api.post(PATH, body("a b c", stop_sequences=["zz", " b"], stream=True)).text)
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": " b"}
    told = api.post(PATH, body("a b c", stop_sequences=["zz"], max_tokens=2)).json()
    assert (told["stop_reason"], told["stop_sequence"]) == ("max_tokens", None)


def test_tokens_are_counted(api: Any, png: bytes) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png).decode()}
    asked = body([{"type": "image", "source": source}, {"type": "text", "text": "a b"}], system="c")
    del asked["max_tokens"]
    assert api.post(f"{PATH}/count_tokens", asked).json() == {"input_tokens": 7}


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"mood": 1}, "mood"),
        ({"temperature": 1.5}, "temperature"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"stop_sequences": ["a"] * 5}, "stop_sequences"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tools": [WEATHER, WEATHER]}, "two functions"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "'x'"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "role"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "tool_use_id"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "begun"),
        (
            {"messages": [{"role": "assistant", "content": [USE]}, {"role": "user", "content": "b"}]},
            "has no result",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [USE]},
                    {"role": "user", "content": [{"type": "text", "text": "a"}, RESULT]},
                ]
            },
            "results come before",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}
                ]
            },
            "fetches no remote images",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "messages.0.content.0.type",
        ),
    ],
)
def test_what_is_not_taken_is_refused_in_anthropics_form(api: Any, fields: dict[str, Any], word: str) -> None:
    response = api.post(PATH, {**body(), **fields})
    told = MessageErrorAnswer.model_validate(response.json())
    assert (response.status_code, told.error.type) == (400, "invalid_request_error")
    assert word in told.error.message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (OverloadedError("full"), 429, "rate_limit_error"),
        (EngineDeadError("dead"), 503, "overloaded_error"),
        (DeadlineError("late"), 504, "timeout_error"),
        (ValueError("secret"), 500, "api_error"),
    ],
)
def test_failures_have_anthropics_form(
    api: Any, engine: FakeClient, stream: bool, failure: Exception, status: int, kind: str
) -> None:
    engine.behaviour.failure = failure
    response = api.post(PATH, body(stream=stream))
    told = MessageErrorAnswer.model_validate(response.json())
    assert (response.status_code, told.error.type) == (status, kind)
    assert "secret" not in told.error.message


def test_other_refusals_have_anthropics_form(api: Any) -> None:
    for response, status in (
        (api.post(PATH, {**body(), "model": "nobody"}), 404),
        (api.get(PATH), 405),
        (api.post(f"{PATH}/batches", {}), 404),
    ):
        assert response.status_code == status
        MessageErrorAnswer.model_validate(response.json())


def test_a_failure_inside_a_stream_is_its_last_event(api: Any, engine: FakeClient) -> None:
    failure: PocketVLMError = EngineDeadError("worker died")
    engine.behaviour.failure, engine.behaviour.failure_after_tokens = failure, 2
    events = events_of(api.post(PATH, body(stream=True)).text)
    assert events[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "worker died"}}
