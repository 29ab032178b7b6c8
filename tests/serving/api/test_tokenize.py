"""Tokens of texts and conversations."""

from __future__ import annotations

from typing import Any

import pytest

from serving.fake import FakeClient


def test_a_text_is_counted(api: Any) -> None:
    found = api.post("/tokenize", {"model": "fake-vlm", "prompt": "a b c"}).json()
    assert found == {"count": 3, "max_model_len": 64, "tokens": [0, 1, 2], "token_strs": None}
    found = api.post("/tokenize", {"model": "fake-clip", "prompt": "a b", "return_token_strs": True}).json()
    assert found == {"count": 2, "max_model_len": None, "tokens": [0, 1], "token_strs": ["a", "b"]}


def test_a_conversation_is_counted_with_its_images(api: Any, png: bytes, image_part: Any) -> None:
    content = [image_part(png), {"type": "text", "text": "a b"}]
    messages = [{"role": "user", "content": content}]
    assert api.post("/tokenize", {"model": "fake-vlm", "messages": messages}).json()["count"] == 6


def test_tokens_become_text(api: Any) -> None:
    assert api.post("/detokenize", {"model": "fake-vlm", "tokens": [3, 4]}).json() == {"prompt": "w3 w4"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": [{"type": "function", "function": {"name": "a"}}]}, "tools"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"prompt": "a", "vision": {"method": "uniform", "keep": 0.5}}, "vision"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1], "text": "a"}, "text"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(api: Any, path: str, body: dict[str, Any], param: str) -> None:
    response = api.post(path, {"model": "fake-vlm", **body})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_failing_engine_is_told(api: Any, engine: FakeClient) -> None:
    engine.behaviour.failure = MemoryError()
    assert api.post("/tokenize", {"model": "fake-vlm", "prompt": "a"}).status_code == 503
