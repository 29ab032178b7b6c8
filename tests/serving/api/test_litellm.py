"""LiteLLM, unchanged, against a real socket: by OpenAI's API and by Anthropic's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.fake import FakeClient
from serving.protocol import ToolCall

CALL = ToolCall("", "weather", '{"city": "Bern"}').text
ASKED = [{"role": "user", "content": "one two"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    global litellm
    litellm = pytest.importorskip("litellm", reason="litellm is not installed: with what it needs it takes 350 MB")


@pytest.fixture(params=["openai", "anthropic"])
def ask(request: pytest.FixtureRequest, server_url: str) -> Any:
    base = f"{server_url}/v1" if request.param == "openai" else server_url

    def completion(**fields: Any) -> Any:
        model = f"{request.param}/fake-vlm"
        return litellm.completion(model=model, api_base=base, api_key="none", max_tokens=20, num_retries=0, **fields)

    return completion


def test_chat_and_stream(ask: Any) -> None:
    assert ask(messages=ASKED).choices[0].message.content == "0 images. one two"
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(messages=ASKED, stream=True)]
    assert "".join(pieces) == "0 images. one two"


def test_a_loop_of_calls_and_results(ask: Any, engine: FakeClient) -> None:
    engine.behaviour.answer = f"I look. {CALL}"
    answer = ask(messages=ASKED, tools=[WEATHER])
    [call] = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Bern"}
    engine.behaviour.answer = "Cold."
    result = {"role": "tool", "tool_call_id": call.id, "content": "7 degrees"}
    history = [*ASKED, answer.choices[0].message.model_dump(), result]
    assert ask(messages=history, tools=[WEATHER]).choices[0].message.content == "Cold."
    assert [message.role for message in engine.generations[-1].messages] == ["user", "assistant", "tool"]
