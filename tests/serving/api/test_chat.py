from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from bundle.errors import EngineDeadError, OverloadedError, PocketVLMError
from serving.api.answers.chat import ChatCompletion, ChatCompletionChunk
from serving.fake import FakeClient
from serving.protocol import M3ID, VCD, ImagePart, Message, SamplingParams, Structure, TextPart

CHAT = "/v1/chat/completions"
Ask = Callable[..., dict[str, Any]]


def test_an_answer_holds_text_reason_usage_and_timings(api: Any, ask: Ask) -> None:
    body = api.post(CHAT, ask("one two")).json()
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "0 images. one two", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 4,
        "total_tokens": 6,
        "prompt_tokens_details": {
            "cached_tokens": 0,
            "image_tokens": 0,
            "cached_image_tokens": 0,
            "cache_rows_before": 2,
            "cache_rows_after": 2,
            "kept_image_tokens": 0,
        },
    }
    assert (body["object"], body["model"]) == ("chat.completion", "fake-vlm")
    assert body["timings"]["total_s"] > 0


def test_parts_reach_the_engine_in_their_order(api: Any, engine: FakeClient, png: bytes, image_part: Any) -> None:
    content = [{"type": "text", "text": "a"}, image_part(png), {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]
    assert api.post(CHAT, {"model": "fake-vlm", "messages": messages}).status_code == 200
    assert engine.generations[0].messages == (
        Message("system", (TextPart("be brief"),)),
        Message("user", (TextPart("a"), ImagePart(png), TextPart("b"))),
    )


def test_sampling_fields_reach_the_engine(api: Any, engine: FakeClient, ask: Ask) -> None:
    fields = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "stop": ["x", "y"]}
    assert api.post(CHAT, ask(**fields)).status_code == 200
    assert engine.generations[0].sampling == SamplingParams(9, 0.5, 0.9, 7, 3, ("x", "y"))


def test_every_other_sampling_field_reaches_the_engine(api: Any, engine: FakeClient, ask: Ask) -> None:
    fields = {
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {"7": 5, "9": -100},
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [3],
        "include_stop_str_in_output": True,
        "logprobs": True,
        "top_logprobs": 4,
        "n": 3,
    }
    assert api.post(CHAT, ask(**fields)).status_code == 200
    assert engine.generations[0].num_choices == 3
    assert engine.generations[0].sampling == SamplingParams(
        min_p=0.1,
        repetition_penalty=1.2,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias=((7, 5.0), (9, -100.0)),
        min_tokens=2,
        ignores_eos=True,
        stop_token_ids=(3,),
        includes_stop=True,
        top_logprobs=4,
    )


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "kind", "text", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json", '{"type": "object"}', "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA},
                }
            },
            "json",
            json.dumps(SCHEMA),
            "response_format",
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "json", json.dumps(SCHEMA), "structured_outputs"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: x"}}, "grammar", "start: x", "structured_outputs"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]', "structured_outputs"),
        ({"structured_outputs": {"json_object": True}}, "json", '{"type": "object"}', "structured_outputs"),
        ({"guided_json": SCHEMA}, "json", json.dumps(SCHEMA), "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "json", json.dumps(SCHEMA), "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a"]}, "choice", '["a"]', "guided_choice"),
        ({"guided_grammar": "start: x"}, "grammar", "start: x", "guided_grammar"),
    ],
)
def test_each_spelling_of_a_structure_reaches_the_engine(
    api: Any, engine: FakeClient, ask: Ask, fields: dict[str, Any], kind: Any, text: str, param: str
) -> None:
    assert api.post(CHAT, ask(**fields)).status_code == 200
    assert engine.generations[0].sampling.structure == Structure(kind, text, param)


@pytest.mark.parametrize(
    ("field", "contrast"),
    [
        ({"method": "vcd"}, VCD(1.0, 0.1, 500)),
        ({"method": "vcd", "alpha": 0.5, "beta": 0.2, "noise_step": 900}, VCD(0.5, 0.2, 900)),
        ({"method": "m3id"}, M3ID(0.02, 0.3)),
        ({"method": "m3id", "decay": 0.1, "confidence": 1.0}, M3ID(0.1, 1.0)),
        (None, None),
    ],
)
def test_a_contrast_reaches_the_engine(api: Any, engine: FakeClient, ask: Ask, field: Any, contrast: Any) -> None:
    assert api.post(CHAT, ask(contrast=field)).status_code == 200
    assert engine.generations[0].sampling.contrast == contrast


def test_several_choices_come_whole_with_their_index_and_the_prompt_counted_once(api: Any, ask: Ask) -> None:
    body = api.post(CHAT, ask("one two", n=3)).json()
    ChatCompletion.model_validate(body)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in body["choices"]} == {"0 images. one two"}
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (2, 12)


def test_streamed_choices_are_told_apart_by_their_index(api: Any, ask: Ask, read_events: Any) -> None:
    *chunks, _ = read_events(api.post(CHAT, ask("one two", n=2, stream=True)).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in own) == "0 images. one two"
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
    assert [choice["index"] for choice in choices] != sorted(choice["index"] for choice in choices)  # interleaved


def test_logprobs_are_told_whole_and_streamed_for_every_token(api: Any, ask: Ask, read_events: Any) -> None:
    fields = {"logprobs": True, "top_logprobs": 2}
    body = api.post(CHAT, ask("one", **fields)).json()
    ChatCompletion.model_validate(body)
    content = body["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == body["choices"][0]["message"]["content"]
    assert [bytes(entry["bytes"]).decode() for entry in content] == [entry["token"] for entry in content]
    assert [len(entry["top_logprobs"]) for entry in content] == [2, 2, 2]
    *chunks, _ = read_events(api.post(CHAT, ask("one", stream=True, **fields)).text)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for each in told if each for entry in each["content"]] == content


def test_absent_and_null_sampling_fields_take_the_engines_defaults(api: Any, engine: FakeClient, ask: Ask) -> None:
    nulls = dict.fromkeys(("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "n", "stream_options"))
    assert api.post(CHAT, ask()).status_code == api.post(CHAT, ask(**nulls)).status_code == 200
    assert engine.generations[0].sampling == engine.generations[1].sampling == SamplingParams()


@pytest.mark.parametrize(
    "field",
    [
        {"n": 1},
        {"frequency_penalty": 0, "presence_penalty": 0.0},
        {"logprobs": False},
        {"response_format": {"type": "text"}},
        {"user": "somebody"},
        {"top_k": -1},
    ],
)
def test_values_that_change_nothing_are_taken_as_common_clients_send_them(
    api: Any, engine: FakeClient, ask: Ask, field: dict[str, Any]
) -> None:
    assert api.post(CHAT, ask(**field)).json()["choices"] == api.post(CHAT, ask()).json()["choices"]
    assert engine.generations[0].sampling.top_k in (None, 0)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_either_name_of_the_token_limit_ends_the_answer(api: Any, ask: Ask, field: str) -> None:
    choice = api.post(CHAT, ask("a b c d", **{field: 3})).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("0 images. a", "length")


def test_one_stop_string_may_be_sent_without_a_list(api: Any, ask: Ask) -> None:
    assert api.post(CHAT, ask("a b c", stop=" b")).json()["choices"][0]["message"]["content"] == "0 images. a"


def test_a_stream_is_role_then_text_then_reason_then_done(api: Any, ask: Ask, read_events: Any) -> None:
    response = api.post(CHAT, ask("one two", stream=True))
    *chunks, done = read_events(response.text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == "0 images. one two"
    assert (deltas[-1], done) == ({}, "[DONE]")
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_ends_with_usage_where_asked(api: Any, ask: Ask, read_events: Any) -> None:
    text = api.post(CHAT, ask("one two", stream=True, stream_options={"include_usage": True})).text
    *chunks, last, done = read_events(text)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["completion_tokens"], done) == ([], 4, "[DONE]")


def test_streamed_and_whole_answers_are_the_same_text(api: Any, ask: Ask, read_events: Any) -> None:
    whole = api.post(CHAT, ask("ünïcode 漢字 \n\n data: x")).json()["choices"][0]["message"]["content"]
    *chunks, _ = read_events(api.post(CHAT, ask("ünïcode 漢字 \n\n data: x", stream=True)).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [(OverloadedError("full"), 429, "overloaded"), (EngineDeadError("worker died"), 503, "engine_dead")],
)
def test_a_failure_before_the_first_token_has_its_status(
    api: Any, engine: FakeClient, ask: Ask, stream: bool, failure: PocketVLMError, status: int, code: str
) -> None:
    engine.behaviour.failure = failure
    response = api.post(CHAT, ask(stream=stream))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["message"]) == (status, code, str(failure))
    assert response.headers["retry-after"] == "1"


def test_a_failure_inside_a_stream_is_an_error_event_then_done(
    api: Any, engine: FakeClient, ask: Ask, read_events: Any
) -> None:
    engine.behaviour.failure, engine.behaviour.failure_after_tokens = EngineDeadError("worker died"), 2
    response = api.post(CHAT, ask("a b c", stream=True))
    *chunks, error, done = read_events(response.text)
    assert response.status_code == 200
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "0", " images."]
    assert error["error"] == {
        "message": "worker died",
        "type": "unavailable_error",
        "param": None,
        "code": "engine_dead",
    }
    assert done == "[DONE]"


def test_an_unexpected_failure_keeps_its_text_to_the_log(api: Any, engine: FakeClient, ask: Ask) -> None:
    engine.behaviour.failure = ValueError("secret path")  # type: ignore[assignment]
    for stream in (False, True):
        response = api.post(CHAT, ask(stream=stream), headers={"X-Request-ID": "mine"})
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal"
        assert "secret" not in response.text
        assert response.headers["x-request-id"] == "mine"


def test_ids_differ_even_where_clients_send_one_request_id(api: Any, engine: FakeClient, ask: Ask) -> None:
    ids = {api.post(CHAT, ask(), headers={"X-Request-ID": "same"}).json()["id"] for _ in range(3)}
    assert len(ids) == 3
    assert {request.request_id for request in engine.generations} == ids


def test_more_images_than_allowed_are_refused(make_caller: Any, ask: Ask, png: bytes, image_part: Any) -> None:
    api = make_caller(max_images=2)
    assert api.post(CHAT, ask([image_part(png)] * 2)).status_code == 200
    assert "3 images; one request may hold 2" in api.post(CHAT, ask([image_part(png)] * 3)).json()["error"]["message"]


def test_tokens_are_sent_as_they_come(server_url: str, engine: FakeClient, ask: Ask) -> None:
    """Each wait is 0.1 s; half of it is left to a busy machine."""
    import httpx

    engine.behaviour.token_s = 0.1
    arrivals = []
    with httpx.stream("POST", server_url + CHAT, json=ask("a b", stream=True)) as response:
        for line in response.iter_lines():
            if '"content":"' in line:
                arrivals.append(time.monotonic())
    assert len(arrivals) == 5
    assert arrivals[-1] - arrivals[1] > 3 * 0.05


def test_a_priority_and_what_is_left_of_the_time_limit_reach_the_engine(api: Any, engine: FakeClient, ask: Ask) -> None:
    headers = {"X-Request-Timeout": "30"}
    assert api.post(CHAT, ask("hi", priority=-3), headers=headers).status_code == 200
    assert api.post(CHAT, ask("hi")).status_code == 200
    urgent, usual = engine.generations
    assert (urgent.priority, usual.priority) == (-3, 0)
    assert 20 < urgent.timeout_s <= 30 < usual.timeout_s <= 600


@pytest.mark.parametrize("priority", [-11, 11, 1.5, "high"])
def test_a_priority_out_of_its_range_is_refused_by_name(api: Any, ask: Ask, priority: Any) -> None:
    error = api.post(CHAT, ask("hi", priority=priority)).json()["error"]
    assert (error["param"], error["type"]) == ("priority", "invalid_request_error")
