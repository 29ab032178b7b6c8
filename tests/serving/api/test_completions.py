"""A text that the model goes on with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from serving.api.answering import Answering
from serving.api.answers.completions import Completion, CompletionChunk
from serving.api.completions import CompletionForm
from serving.fake import FakeClient
from serving.protocol import SamplingParams, TokenLogprob

PATH = "/v1/completions"


def body(prompt: Any = "one two", **fields: Any) -> dict[str, Any]:
    return {"model": "fake-vlm", "prompt": prompt, **fields}


def test_a_text_is_gone_on_with(api: Any, engine: FakeClient) -> None:
    found = api.post(PATH, body()).json()
    Completion.model_validate(found)
    assert found["choices"] == [{"index": 0, "text": "0 images. one two", "logprobs": None, "finish_reason": "stop"}]
    assert (found["object"], found["usage"]["prompt_tokens"], found["id"][:5]) == ("text_completion", 2, "cmpl-")
    assert (engine.generations[0].text, engine.generations[0].messages) == ("one two", ())
    assert engine.generations[0].sampling == SamplingParams(max_tokens=16)


def test_sampling_is_as_in_chats(api: Any, engine: FakeClient) -> None:
    assert api.post(PATH, body(temperature=0.5, max_tokens=3, seed=4, stop="x", n=2)).status_code == 200
    assert engine.generations[0].num_choices == 2
    assert engine.generations[0].sampling == SamplingParams(3, 0.5, seed=4, stop=("x",))


def test_streamed_texts_are_the_whole_ones(api: Any, read_events: Any) -> None:
    asked = body(n=2, stream=True, logprobs=2, stream_options={"include_usage": True})
    *chunks, usage, done = read_events(api.post(PATH, asked).text)
    for chunk in [*chunks, usage]:
        CompletionChunk.model_validate(chunk)
    choices = [chunk["choices"][0] for chunk in chunks]
    whole = api.post(PATH, body(n=2, logprobs=2)).json()["choices"]
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == whole[index]["text"]
        assert own[-1]["finish_reason"] == "stop"
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [each for choice in own for each in choice["logprobs"][name]] == whole[index]["logprobs"][name]
    assert (usage["choices"], usage["usage"]["completion_tokens"], done) == ([], 8, "[DONE]")


def test_logprobs_tell_tokens_with_their_places_in_the_text(api: Any) -> None:
    choice = api.post(PATH, body(logprobs=2)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    assert [len(top) for top in logprobs["top_logprobs"]] == [2] * 4
    assert logprobs["token_logprobs"] == [-1.0] * 4


def test_a_character_of_several_tokens_takes_one_place_in_each_choice() -> None:
    answering = SimpleNamespace(num_choices=2, request_id="r", created_s=0, told_model="m")
    form = CompletionForm(cast(Answering, answering), tells_logprobs=True, includes_usage=False)

    def offsets(index: int, *pieces: bytes) -> list[int]:
        told = form.choice(index, "", [TokenLogprob(piece, -1.0) for piece in pieces], None)["logprobs"]
        return cast(list[int], told["text_offset"])

    face = "\U0001f600".encode()
    assert offsets(0, b"a", face[:2]) == [0, 1]
    assert offsets(1, b"cd", b"e") == [0, 2]
    assert offsets(0, face[2:], b"b", b"c") == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"tools": []}, "tools"),
        ({"stream_options": {}}, "stream_options"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(api: Any, fields: dict[str, Any], param: str) -> None:
    error = api.post(PATH, {**body(), **fields}).json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


def test_a_list_of_one_is_one(api: Any, engine: FakeClient) -> None:
    assert api.post(PATH, body(["a"])).status_code == 200
    assert engine.generations[0].text == "a"


def test_the_openai_client_completes(server_url: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(model="fake-vlm", prompt="a b", logprobs=1)
        assert answer.choices[0].text == "0 images. a b"
        assert answer.choices[0].logprobs is not None
        stream = client.completions.create(model="fake-vlm", prompt="a b", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == "0 images. a b"
