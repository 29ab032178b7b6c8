"""The official OpenAI client, unchanged, against a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bundle.errors import EngineDeadError, OverloadedError
from serving.fake import EMBEDDING_SIZE, FakeClient


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import openai here, so that collecting takes none."""
    global openai
    import openai


@pytest.fixture
def client(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def messages(text: str, *images: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def test_chat(client: openai.OpenAI, png: bytes, image_part: Any) -> None:
    answer = client.chat.completions.create(
        model="fake-vlm",
        messages=messages("what is it", image_part(png)),
        max_tokens=3,
        temperature=0,
        top_p=1,
        seed=1,
        stop=["z"],
        n=1,
        extra_body={"top_k": 5},
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("1 images. what", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    assert answer._request_id


def test_streamed_chat_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="fake-vlm", messages=messages("a b"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "0 images. a b"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_embeddings_in_the_clients_default_base64_and_in_numbers(client: openai.OpenAI) -> None:
    default = client.embeddings.create(model="fake-clip", input=["a", "b"])
    numbers = client.embeddings.create(model="fake-clip", input=["a", "b"], encoding_format="float")
    rows = np.array([item.embedding for item in default.data])
    assert rows.shape == (2, EMBEDDING_SIZE)
    np.testing.assert_array_equal(rows, [item.embedding for item in numbers.data])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)  # float32


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake-vlm", "fake-clip"]
    assert client.models.retrieve("fake-clip").owned_by == "pocketvlm"


def test_error_classes(client: openai.OpenAI, engine: FakeClient) -> None:
    def ask(**fields: Any) -> None:
        client.chat.completions.create(**{"model": "fake-vlm", "messages": messages("a"), **fields})

    with pytest.raises(openai.NotFoundError, match="nobody"):
        ask(model="nobody")
    with pytest.raises(openai.BadRequestError, match="frequency_penalty") as caught:
        ask(frequency_penalty=2.5)
    assert caught.value.param == "frequency_penalty"
    engine.behaviour.failure = OverloadedError("full")
    with pytest.raises(openai.RateLimitError, match="full"):
        ask()
    engine.behaviour.failure = EngineDeadError("died")
    with pytest.raises(openai.InternalServerError, match="died"):
        ask()


def test_every_sampling_field_of_the_client_is_taken(client: openai.OpenAI, engine: FakeClient) -> None:
    answer = client.chat.completions.create(
        model="fake-vlm",
        messages=messages("a b"),
        n=2,
        logprobs=True,
        top_logprobs=3,
        logit_bias={"5": -100},
        frequency_penalty=1.0,
        presence_penalty=0.5,
        extra_body={"min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 1, "stop_token_ids": [4]},
    )
    assert [choice.message.content for choice in answer.choices] == ["0 images. a b"] * 2
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == "0 images. a b"
    assert len(logprobs.content[0].top_logprobs) == 3


def test_a_structured_answer_is_parsed_by_the_client(client: openai.OpenAI) -> None:
    from pydantic import BaseModel

    class Anything(BaseModel):
        colour: str = "none"

    answer = client.chat.completions.parse(model="fake-vlm", messages=messages("a"), response_format=Anything)
    assert answer.choices[0].message.parsed == Anything()
    chosen = client.chat.completions.create(
        model="fake-vlm", messages=messages("a"), extra_body={"structured_outputs": {"choice": ["red", "blue"]}}
    )
    assert chosen.choices[0].message.content == "red"


def test_a_broken_stream_raises_after_its_text(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.behaviour.failure, engine.behaviour.failure_after_tokens = EngineDeadError("died"), 2
    stream = client.chat.completions.create(model="fake-vlm", messages=messages("a"), stream=True)
    chunks = [next(stream) for _ in range(3)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "0 images."
    with pytest.raises(openai.APIError, match="died"):
        next(stream)


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


def test_a_loop_of_calls_and_results(client: openai.OpenAI, engine: FakeClient) -> None:
    """As OpenAI documents it: the message goes back as it came, with a result for each call."""
    history: list[Any] = [{"role": "user", "content": "How is it in Bern?"}]
    engine.behaviour.answer = f"{CALL}\n{CALL}"
    answer = client.chat.completions.create(model="fake-vlm", messages=history, tools=[WEATHER])
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    history.append(message)
    for call in message.tool_calls or ():
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"city": "Bern"}
        history.append({"role": "tool", "tool_call_id": call.id, "content": "7 degrees"})
    engine.behaviour.answer = "It is cold."
    answer = client.chat.completions.create(model="fake-vlm", messages=history, tools=[WEATHER])
    assert answer.choices[0].message.content == "It is cold."
    assert [message.role for message in engine.generations[-1].messages] == ["user", "assistant", "tool", "tool"]


def test_streamed_calls_are_put_together_by_the_client(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.behaviour.answer = f"I look. {CALL}"
    with client.chat.completions.stream(
        model="fake-vlm", messages=[{"role": "user", "content": "a"}], tools=[WEATHER]
    ) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"content.delta", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    [call] = answer.choices[0].message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Bern"}')
    assert answer.choices[0].message.content == "I look."


def test_arguments_are_parsed_into_the_callers_type(client: openai.OpenAI) -> None:
    from pydantic import BaseModel

    class Weather(BaseModel):
        city: str
        days: int

    answer = client.chat.completions.parse(
        model="fake-vlm",
        messages=[{"role": "user", "content": "a"}],
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice="required",
    )
    [call] = answer.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == Weather(city="x", days=0)


@pytest.fixture
def asked_both() -> dict[str, Any]:
    """A chat that offers a function, and says what an answer without a call shall be."""
    from pydantic import BaseModel

    class Report(BaseModel):
        colour: str = "none"

    class Weather(BaseModel):
        city: str

    return {
        "model": "fake-vlm",
        "messages": [{"role": "user", "content": "a"}],
        "tools": [openai.pydantic_function_tool(Weather, name="weather")],
        "response_format": Report,
    }


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("calls", [False, True])
def test_an_answer_with_tools_and_a_format_is_a_call_or_of_the_format(
    client: openai.OpenAI, engine: FakeClient, asked_both: dict[str, Any], streams: bool, calls: bool
) -> None:
    engine.behaviour.answer = CALL if calls else None
    if streams:
        with client.chat.completions.stream(**asked_both) as stream:
            answer = stream.get_final_completion()
    else:
        answer = client.chat.completions.parse(**asked_both)
    choice = answer.choices[0]
    if calls:
        [call] = choice.message.tool_calls or ()
        assert call.function.parsed_arguments is not None
        assert (choice.finish_reason, choice.message.content or "", choice.message.parsed) == ("tool_calls", "", None)
    else:
        assert (choice.finish_reason, choice.message.parsed) == ("stop", asked_both["response_format"]())
        assert not choice.message.tool_calls
    structure = engine.generations[-1].sampling.structure
    assert structure is not None
    assert structure.answer is not None
    assert json.loads(structure.answer.text)["properties"].keys() == {"colour"}
    assert not structure.is_optional


def test_a_forced_call_wins_over_a_format(
    client: openai.OpenAI, engine: FakeClient, asked_both: dict[str, Any]
) -> None:
    answer = client.chat.completions.parse(**asked_both, tool_choice="required")
    assert [call.function.name for call in answer.choices[0].message.tool_calls or ()] == ["weather"]
    structure = engine.generations[-1].sampling.structure
    assert structure is not None
    assert structure.answer is None
    assert client.chat.completions.parse(**asked_both, tool_choice="none").choices[0].message.parsed is not None


def test_the_asynchronous_client_calls(server_url: str, engine: FakeClient) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="fake-vlm",
                messages=[{"role": "user", "content": "a"}],
                tools=[WEATHER],
                tool_choice={"type": "function", "function": {"name": "weather"}},
                stream=True,
            )
            names = [
                call.function.name
                async for chunk in stream
                for call in chunk.choices[0].delta.tool_calls or ()
                if call.function and call.function.name
            ]
            assert names == ["weather"]

    asyncio.run(main())


FUNCTION: Any = {"type": "function", "strict": True, **WEATHER["function"]}


def test_a_response_and_its_stream(client: openai.OpenAI, png: bytes, image_part: Any) -> None:
    content: Any = [
        {"type": "input_image", "image_url": image_part(png)["image_url"]["url"], "detail": "auto"},
        {"type": "input_text", "text": "what is it"},
    ]
    asked: Any = {"model": "fake-vlm", "input": [{"role": "user", "content": content}], "store": False}
    answer = client.responses.create(**asked)
    assert (answer.output_text, answer.status) == ("1 images. what is it", "completed")
    with client.responses.stream(**asked) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(texts) == stream.get_final_response().output_text == answer.output_text


def test_a_loop_of_calls_and_results_in_responses(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.behaviour.answer = f"I look. {CALL}"
    history: list[Any] = [{"role": "user", "content": "How is it in Bern?"}]
    answer = client.responses.create(model="fake-vlm", input=history, tools=[FUNCTION])
    history += answer.output
    for item in answer.output:
        if item.type == "function_call":
            assert json.loads(item.arguments) == {"city": "Bern"}
            history.append({"type": "function_call_output", "call_id": item.call_id, "output": "7 degrees"})
    engine.behaviour.answer = "It is cold."
    assert client.responses.create(model="fake-vlm", input=history, tools=[FUNCTION]).output_text == "It is cold."
    assert [message.role for message in engine.generations[-1].messages] == ["user", "assistant", "tool"]


def test_responses_are_parsed_into_the_callers_type(client: openai.OpenAI) -> None:
    from pydantic import BaseModel

    class Anything(BaseModel):
        colour: str = "none"

    assert client.responses.parse(model="fake-vlm", input="a", text_format=Anything).output_parsed == Anything()


def test_streamed_calls_of_responses(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.behaviour.answer = CALL
    with client.responses.stream(model="fake-vlm", input="a", tools=[FUNCTION]) as stream:
        kinds = {event.type for event in stream}
        [item] = stream.get_final_response().output
    assert "response.function_call_arguments.done" in kinds
    assert item.type == "function_call"
    assert json.loads(item.arguments) == {"city": "Bern"}


def test_a_broken_stream_of_a_response_is_told(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.behaviour.failure, engine.behaviour.failure_after_tokens = EngineDeadError("died"), 2
    *_, last = client.responses.create(model="fake-vlm", input="a", stream=True)
    assert last.type == "error"
    assert last.message == "died"
