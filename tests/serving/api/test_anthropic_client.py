"""Anthropic's own client, unchanged, against a real socket."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import pytest

from bundle.errors import EngineDeadError, OverloadedError
from serving.fake import FakeClient
from serving.protocol import ToolCall

CALL = ToolCall("", "weather", '{"city": "Bern"}').text
WEATHER: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASKED: Any = {"role": "user", "content": "one two"}


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import anthropic here, so that collecting takes none."""
    global anthropic
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed: it comes with [dev]")


@pytest.fixture
def client(server_url: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server_url, api_key="none", max_retries=0) as client:
        yield client


def test_a_message_with_an_image(client: Any, png: bytes) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png).decode()}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "what is it"}]
    answer = client.messages.create(
        model="fake-vlm", max_tokens=3, system="Be brief.", messages=[{"role": "user", "content": content}]
    )
    assert (answer.content[0].text, answer.stop_reason) == ("1 images. what", "max_tokens")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (9, 3)


def test_a_streamed_message(client: Any) -> None:
    with client.messages.stream(model="fake-vlm", max_tokens=20, messages=[ASKED]) as stream:
        assert "".join(stream.text_stream) == "0 images. one two"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("end_turn", 2, 4)


def test_a_loop_of_calls_and_results(client: Any, engine: FakeClient) -> None:
    engine.behaviour.answer = f"I look. {CALL}"
    asked: dict[str, Any] = {"model": "fake-vlm", "max_tokens": 30, "tools": [WEATHER]}
    answer = client.messages.create(messages=[ASKED], **asked)
    use = next(block for block in answer.content if block.type == "tool_use")
    assert (use.name, use.input, answer.stop_reason) == ("weather", {"city": "Bern"}, "tool_use")
    engine.behaviour.answer = "It is cold."
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "7 degrees"}
    history = [ASKED, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(messages=history, **asked)
    assert answer.content[0].text == "It is cold."
    assert [message.role for message in engine.generations[-1].messages] == ["user", "assistant", "tool"]


def test_streamed_calls(client: Any, engine: FakeClient) -> None:
    engine.behaviour.answer = CALL
    asked: dict[str, Any] = {"model": "fake-vlm", "max_tokens": 30, "tools": [WEATHER], "messages": [ASKED]}
    with client.messages.stream(**asked, tool_choice={"type": "any"}) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds
    assert final.content[0].input == {"city": "x"}  # the fake's own call, where one is required


def test_tokens_are_counted(client: Any) -> None:
    assert client.messages.count_tokens(model="fake-vlm", messages=[ASKED]).input_tokens == 2


def test_error_classes(client: Any, engine: FakeClient) -> None:
    def ask(**fields: Any) -> None:
        client.messages.create(**{"model": "fake-vlm", "max_tokens": 5, "messages": [ASKED], **fields})

    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        ask(model="nobody")
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        ask(extra_body={"temperature": 3})
    engine.behaviour.failure = OverloadedError("full")
    with pytest.raises(anthropic.RateLimitError, match="full"):
        ask()
    engine.behaviour.failure = EngineDeadError("died")
    with pytest.raises(anthropic.InternalServerError, match="died"):
        ask()
    engine.behaviour.failure_after_tokens = 2
    with pytest.raises(anthropic.APIStatusError, match="died"):
        list(client.messages.create(model="fake-vlm", max_tokens=9, messages=[ASKED], stream=True))


def test_the_asynchronous_client(server_url: str) -> None:
    async def main() -> None:
        async with anthropic.AsyncAnthropic(base_url=server_url, api_key="none", max_retries=0) as client:
            answer = await client.messages.create(model="fake-vlm", max_tokens=9, messages=[ASKED])
            assert answer.content[0].text == "0 images. one two"

    asyncio.run(main())
