"""Functions that a chat offers: what reaches the engine, and calls in whole and streamed answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from serving.api.answers.chat import ChatCompletion, ChatCompletionChunk
from serving.fake import FakeClient
from serving.protocol import Message, Structure, TextPart, Tool, ToolCall

CHAT = "/v1/chat/completions"
Ask = Callable[..., dict[str, Any]]

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time"}}
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = (Tool("weather", "Tells it.", json.dumps(SCHEMA)), Tool("time", "", json.dumps(NO_PARAMETERS)))
CALLS = ToolCall("", "weather", '{"city": "Bern"}').text + "\n" + ToolCall("", "time", "{}").text


def held(engine: FakeClient) -> Structure:
    structure = engine.generations[-1].sampling.structure
    assert structure is not None
    return structure


def test_functions_reach_the_engine(api: Any, engine: FakeClient, ask: Ask) -> None:
    assert api.post(CHAT, ask(tools=[WEATHER, TIME])).status_code == 200
    assert engine.generations[0].tools == TOOLS
    assert json.loads(held(engine).text) == {
        "tools": [{"name": "weather", "parameters": SCHEMA}, {"name": "time", "parameters": NO_PARAMETERS}],
        "most": 16,
        "is_required": False,
    }
    assert held(engine).is_optional


@pytest.mark.parametrize(
    ("fields", "names", "most"),
    [
        ({"tool_choice": "required"}, ["weather", "time"], 16),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["weather", "time"], 1),
        ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, ["time"], 1),
    ],
    ids=["required", "one", "named"],
)
def test_what_must_be_called_holds_the_answer_to_calls(
    api: Any, engine: FakeClient, ask: Ask, fields: dict[str, Any], names: list[str], most: int
) -> None:
    choice = api.post(CHAT, ask(tools=[WEATHER, TIME], **fields)).json()["choices"][0]
    asked = json.loads(held(engine).text)
    assert ([tool["name"] for tool in asked["tools"]], asked["most"], asked["is_required"]) == (names, most, True)
    assert not held(engine).is_optional
    assert engine.generations[0].tools == TOOLS
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == [names[0]]


def test_no_choice_tells_the_model_of_no_function(api: Any, engine: FakeClient, ask: Ask) -> None:
    engine.behaviour.answer = CALLS
    choice = api.post(CHAT, ask(tools=[WEATHER], tool_choice="none")).json()["choices"][0]
    assert (engine.generations[0].tools, engine.generations[0].sampling.structure) == ((), None)
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALLS, "stop")


@pytest.mark.parametrize("field", [{"stop": "x"}, {"min_tokens": 1}, {"ignore_eos": True}, {"stop_token_ids": [1]}])
def test_what_no_structure_goes_with_leaves_calls_free_unless_they_are_strict(
    api: Any, engine: FakeClient, ask: Ask, field: dict[str, Any]
) -> None:
    assert api.post(CHAT, ask(tools=[WEATHER], **field)).status_code == 200
    assert engine.generations[0].sampling.structure is None
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    assert api.post(CHAT, ask(tools=[strict], **field)).status_code == 200  # the engine refuses it
    assert not held(engine).is_optional


def test_calls_of_a_whole_answer(api: Any, engine: FakeClient, ask: Ask) -> None:
    engine.behaviour.answer = f"I look.\n{CALLS}"
    response = api.post(CHAT, ask(tools=[WEATHER, TIME]))
    ChatCompletion.model_validate(response.json())
    choice = response.json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "I look.")
    weather, time = choice["message"]["tool_calls"]
    assert weather["function"] == {"name": "weather", "arguments": '{"city": "Bern"}'}
    assert (time["type"], time["function"]) == ("function", {"name": "time", "arguments": "{}"})
    assert weather["id"] != time["id"]


def test_an_answer_of_calls_alone_has_no_content(api: Any, engine: FakeClient, ask: Ask) -> None:
    engine.behaviour.answer = CALLS
    assert api.post(CHAT, ask(tools=[WEATHER, TIME])).json()["choices"][0]["message"]["content"] is None


def test_an_answer_without_a_call_is_as_without_functions(api: Any, ask: Ask) -> None:
    with_tools, without = (api.post(CHAT, ask("one two", **more)).json()["choices"] for more in ({"tools": [TIME]}, {}))
    assert with_tools == without


def test_a_cut_call_is_told_as_far_as_it_came(api: Any, engine: FakeClient, ask: Ask) -> None:
    engine.behaviour.answer = CALLS
    choice = api.post(CHAT, ask(tools=[WEATHER], max_tokens=5)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city":'


def gathered(chunks: list[dict[str, Any]], index: int) -> tuple[str, list[dict[str, str]], str]:
    text, calls, reason = "", list[dict[str, str]](), ""
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        [choice] = chunk["choices"]
        if choice["index"] != index:
            continue
        reason = choice["finish_reason"] or reason
        text += choice["delta"].get("content", "")
        for piece in choice["delta"].get("tool_calls", ()):
            if "id" in piece:
                assert piece["index"] == len(calls)
                calls.append({"name": piece["function"]["name"], "arguments": ""})
            calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
    return text, calls, reason


@pytest.mark.parametrize("logprobs", [False, True])
def test_streamed_calls_are_the_whole_answers(
    api: Any, engine: FakeClient, ask: Ask, read_events: Any, logprobs: bool
) -> None:
    engine.behaviour.answer = f"I look.\n{CALLS}"
    fields = {"tools": [WEATHER, TIME], "n": 2, "logprobs": logprobs}
    *chunks, _ = read_events(api.post(CHAT, ask(stream=True, **fields)).text)
    whole = api.post(CHAT, ask(**fields)).json()["choices"]
    for index in (0, 1):
        text, calls, reason = gathered(chunks, index)
        assert (text, reason) == ("I look.", "tool_calls")
        assert calls == [call["function"] for call in whole[index]["message"]["tool_calls"]]
    entries = [each for c in chunks for each in (c["choices"][0]["logprobs"] or {}).get("content", ())]
    of_whole = [each for choice in whole for each in (choice["logprobs"] or {}).get("content", ())]
    assert sorted(map(str, entries)) == sorted(map(str, of_whole))
    assert bool(entries) is logprobs


def test_arguments_are_streamed_before_the_call_has_ended(
    api: Any, engine: FakeClient, ask: Ask, read_events: Any
) -> None:
    engine.behaviour.answer = CALLS
    *chunks, _ = read_events(api.post(CHAT, ask(tools=[WEATHER], stream=True)).text)
    pieces = [c["choices"][0]["delta"]["tool_calls"] for c in chunks if "tool_calls" in c["choices"][0]["delta"]]
    assert [piece[0]["function"]["arguments"] for piece in pieces] == ["", '{"city":', ' "Bern"}']


def test_calls_and_results_in_the_history_reach_the_engine(api: Any, engine: FakeClient, ask: Ask) -> None:
    engine.behaviour.answer = CALLS
    chat = ask("hello", tools=[WEATHER, TIME])
    message = api.post(CHAT, chat).json()["choices"][0]["message"]
    ids = [call["id"] for call in message["tool_calls"]]
    results = [{"role": "tool", "tool_call_id": each, "content": f"of {each}"} for each in reversed(ids)]
    assert api.post(CHAT, {**chat, "messages": [*chat["messages"], message, *results]}).status_code == 200
    calls = (ToolCall(ids[0], "weather", '{"city": "Bern"}'), ToolCall(ids[1], "time", "{}"))
    assert engine.generations[-1].messages[1:] == (
        Message("assistant", (), calls),
        Message("tool", (TextPart(f"of {ids[1]}"),)),
        Message("tool", (TextPart(f"of {ids[0]}"),)),
    )


NESTED = '{"a": ' * 101 + "1" + "}" * 101
BAD_VALUES = {
    "nested": (NESTED, "more than 100 levels"),
    "nested in lists": ('{"a": ' + "[" * 400 + "]" * 400 + "}", "more than 100 levels"),
    "half a surrogate pair": ('{"a": "\\ud800"}', "lone surrogate"),
    "half a pair in a name": ('{"\\ud800": 1}', "lone surrogate"),
    "not a number": ('{"a": NaN}', "NaN"),
    "beyond all numbers": ('{"a": 1e999}', "infinite"),
}


@pytest.mark.parametrize(("text", "word"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_what_no_template_can_be_filled_with_is_refused(
    api: Any, engine: FakeClient, ask: Ask, text: str, word: str
) -> None:
    offered = {"type": "function", "function": {"name": "f", "parameters": text}}
    called = {"id": "1", "type": "function", "function": {"name": "f", "arguments": text}}
    past = [{"role": "assistant", "tool_calls": [called]}, {"role": "tool", "tool_call_id": "1", "content": "x"}]
    bodies = {
        "tools.0.function.parameters": ask(tools=[offered]),
        "messages.0.tool_calls.0.function.arguments": {**ask(), "messages": past},
    }
    for param, body in bodies.items():
        response = api.post(CHAT, body)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert word in error["message"]
    assert engine.generations == []


def test_as_many_levels_as_may_be_are_taken(api: Any, ask: Ask) -> None:
    text = NESTED.removeprefix('{"a": ').removesuffix("}")
    offered = {"type": "function", "function": {"name": "f", "parameters": text}}
    assert api.post(CHAT, ask(tools=[offered])).status_code == 200
