"""What llama-index's client does with a server, printed as JSON: `llama_index_session.py URL IMAGE`.

A program of its own, for llama-index has an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Place(BaseModel):
    """A place."""

    city: str


def weather(city: str) -> str:
    """Tells the weather."""
    return f"7 degrees in {city}"


def user(*blocks: Any) -> ChatMessage:
    return ChatMessage(role="user", blocks=list(blocks))


def conversations(model: OpenAILike, image: str) -> dict[str, Any]:
    asked = user(ImageBlock(path=image), TextBlock(text="what is it"))
    answer = model.chat([asked])
    return {
        "whole": answer.message.content,
        "streamed": "".join(piece.delta or "" for piece in model.stream_chat([asked])),
        "asynchronous": asyncio.run(model.achat([asked])).message.content,
        "a later turn": model.chat([asked, answer.message, user(TextBlock(text="and now"))]).message.content,
        "a bare text": model.complete("one two").text,
        "structured": model.structured_predict(Place, PromptTemplate("Where?")).model_dump(),
    }


def calls(model: OpenAILike) -> dict[str, Any]:
    tool, asked = FunctionTool.from_defaults(weather), user(TextBlock(text="How is it?"))
    called = model.chat_with_tools([tool], chat_history=[asked], tool_required=True)
    [call] = model.get_tool_calls_from_response(called)
    done = ChatMessage(
        role="tool", content=weather(**call.tool_kwargs), additional_kwargs={"tool_call_id": call.tool_id}
    )
    answer = model.chat_with_tools([tool], chat_history=[asked, called.message, done])
    return {"call": [call.tool_name, call.tool_kwargs], "behind its result": answer.message.content}


def main(url: str, image: str) -> None:
    model = OpenAILike(
        model="fake-vlm",
        api_base=f"{url}/v1",
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=2048,
        max_retries=0,
    )
    embedder = OpenAILikeEmbedding(model_name="fake-clip", api_base=f"{url}/v1", api_key="none")
    vectors = [len(each) for each in embedder.get_text_embedding_batch(["a", "b"])]
    print(json.dumps({**conversations(model, image), **calls(model), "vectors": vectors}))


if __name__ == "__main__":
    main(*sys.argv[1:])
