"""LangChain's client of OpenAI's API, unchanged, against a real socket."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field

from serving.fake import FakeClient


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    pytest.importorskip("langchain_openai", reason="langchain-openai is not installed: it comes with [dev]")


@pytest.fixture
def chat(server_url: str) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="fake-vlm", base_url=f"{server_url}/v1", api_key="none", max_retries=0)


class Weather(BaseModel):
    """Tells the weather."""

    city: str = Field(description="Where.")


def test_chat_and_stream(chat: Any) -> None:
    assert chat.invoke("one two").content == "0 images. one two"
    assert "".join(piece.content for piece in chat.stream("one two")) == "0 images. one two"


def test_bound_tools_are_called_and_their_results_taken(chat: Any, engine: FakeClient) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    engine.behaviour.answer = '<tool_call>\n{"name": "Weather", "arguments": {"city": "Bern"}}\n</tool_call>'
    bound = chat.bind_tools([Weather])
    asked = HumanMessage("How is it in Bern?")
    called = bound.invoke([asked])
    [call] = called.tool_calls
    assert (call["name"], call["args"]) == ("Weather", {"city": "Bern"})
    engine.behaviour.answer = "Cold."
    assert bound.invoke([asked, called, ToolMessage("7 degrees", tool_call_id=call["id"])]).content == "Cold."
    assert [message.role for message in engine.generations[-1].messages] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_is_of_the_callers_type(chat: Any, engine: FakeClient, method: str) -> None:
    class Place(BaseModel):
        """A place."""

        city: str = "Bern"

    assert chat.with_structured_output(Place, method=method).invoke("where") == Place()
    assert engine.generations[-1].sampling.structure is not None


def test_embeddings(server_url: str) -> None:
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        model="fake-clip", base_url=f"{server_url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert len(embeddings.embed_documents(["a", "b"])) == 2
