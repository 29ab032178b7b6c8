from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import pytest

from serving.api.app import create_app
from serving.fake import EMBEDDING_SIZE, FAKE_EMBEDDER, FakeClient
from serving.fake_answers import TOKENS_PER_IMAGE
from serving.settings import ApiSettings

EMBEDDINGS = "/v1/embeddings"


def vectors(body: dict[str, Any]) -> np.ndarray:
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    return np.array([item["embedding"] for item in body["data"]], np.float32)


def test_one_text_and_a_list_of_texts_are_embedded(api: Any) -> None:
    one = api.post(EMBEDDINGS, {"model": "fake-clip", "input": "a cat"}).json()
    two = api.post(EMBEDDINGS, {"model": "fake-clip", "input": ["a cat", "a dog"]}).json()
    assert vectors(one).shape == (1, EMBEDDING_SIZE)
    np.testing.assert_array_equal(vectors(two)[0], vectors(one)[0])
    assert two["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert (two["object"], two["model"], two["data"][0]["object"]) == ("list", "fake-clip", "embedding")


def test_images_and_texts_mix_in_their_order(api: Any, png: bytes, image_part: Any) -> None:
    image = image_part(png)
    mixed = vectors(
        api.post(EMBEDDINGS, {"model": "fake-clip", "input": ["a", image, {"type": "text", "text": "b"}]}).json()
    )
    alone = [
        vectors(api.post(EMBEDDINGS, {"model": "fake-clip", "input": [item]}).json())[0] for item in ("a", image, "b")
    ]
    np.testing.assert_array_equal(mixed, alone)


def test_base64_holds_the_same_float32_bits_as_the_numbers(api: Any) -> None:
    body = {"model": "fake-clip", "input": ["a", "b"]}
    numbers = vectors(api.post(EMBEDDINGS, body).json())
    encoded = api.post(EMBEDDINGS, {**body, "encoding_format": "base64"}).json()["data"]
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in encoded]
    np.testing.assert_array_equal(numbers, decoded)


def test_token_ids_are_one_text_and_lists_of_them_several(api: Any) -> None:
    def embedded(given: Any) -> np.ndarray:
        return vectors(api.post(EMBEDDINGS, {"model": "fake-clip", "input": given}).json())

    np.testing.assert_array_equal(embedded([5, 6]), embedded("w5 w6"))
    np.testing.assert_array_equal(embedded([[5, 6], "a", [7]]), embedded(["w5 w6", "a", "w7"]))


def test_texts_are_cut_to_what_is_asked_and_usage_counts_what_is_left(api: Any) -> None:
    body = {"model": "fake-clip", "input": ["a b c", [4, 5, 6]], "truncate_prompt_tokens": 2}
    cut = api.post(EMBEDDINGS, body).json()
    np.testing.assert_array_equal(
        vectors(cut), vectors(api.post(EMBEDDINGS, {"model": "fake-clip", "input": ["a b", "w4 w5"]}).json())
    )
    assert cut["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_messages_of_one_part_are_inputs(api: Any, png: bytes, image_part: Any) -> None:
    image = image_part(png)
    messages = [{"role": "user", "content": [image]}, {"role": "user", "content": "a"}]
    by_messages = api.post(EMBEDDINGS, {"model": "fake-clip", "messages": messages}).json()
    by_input = api.post(EMBEDDINGS, {"model": "fake-clip", "input": [image, "a"]}).json()
    np.testing.assert_array_equal(vectors(by_messages), vectors(by_input))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "a", "dimensions": 4}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", 3]}, "input.1"),
        ({"input": [[]]}, "input.0"),
        ({"input": [[1, -2]]}, "input.0.1"),
        ({"input": [[1, True]]}, "input.0.1"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({}, "input"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "input"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]}, "input"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        ({"input": "a", "input_type": "passage"}, "input_type"),
        ({"input": "a", "instruction": ""}, "instruction"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(api: Any, fields: dict[str, Any], param: str) -> None:
    response = api.post(EMBEDDINGS, {"model": "fake-clip", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.fixture
def embedder() -> Any:
    """An application over a fake model that keeps a vector for every token."""
    return create_app(FakeClient((FAKE_EMBEDDER,)), ApiSettings())


def post(app: Any, path: str, body: dict[str, Any]) -> Any:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post(path, json=body)

    return asyncio.run(send())


def test_an_input_of_several_vectors_has_them_under_embeddings(embedder: Any, png: bytes, image_part: Any) -> None:
    joined = {"content": [image_part(png), {"type": "text", "text": "a b"}]}
    message = {"role": "user", "content": joined["content"]}
    body = {"input": ["a b c", joined]}
    data = post(embedder, EMBEDDINGS, body).json()["data"]
    assert [set(item) for item in data] == [{"object", "index", "embeddings"}] * 2
    assert [len(item["embeddings"]) for item in data] == [3, TOKENS_PER_IMAGE + 2]
    encoded = post(embedder, EMBEDDINGS, {**body, "encoding_format": "base64"}).json()["data"][0]["embeddings"]
    decoded = [np.frombuffer(base64.b64decode(row), "<f4") for row in encoded]
    np.testing.assert_array_equal(decoded, np.array(data[0]["embeddings"], np.float32))
    by_messages = post(embedder, EMBEDDINGS, {"messages": [message]}).json()["data"]
    assert by_messages[0]["embeddings"] == data[1]["embeddings"]


def test_several_vectors_rank_by_late_interaction(embedder: Any, png: bytes, image_part: Any) -> None:
    documents = ["c", "a b c", {"content": [image_part(png), {"type": "text", "text": "a"}]}]
    query, *others = (
        np.array(item["embeddings"])
        for item in post(embedder, EMBEDDINGS, {"input": ["a b", *documents]}).json()["data"]
    )
    expected = [sum(max(float(own @ each) for each in other) for own in query) for other in others]
    results = post(embedder, "/v1/rerank", {"query": "a b", "documents": documents}).json()["results"]
    assert [result["index"] for result in results] == np.argsort(-np.array(expected)).tolist()
    for result in results:
        np.testing.assert_allclose(result["relevance_score"], expected[result["index"]], atol=1e-5)
    assert results[0]["document"] == {"text": "a b c"}
    scored = post(embedder, "/v1/score", {"text_1": "a b", "text_2": documents}).json()["data"]
    np.testing.assert_allclose([item["score"] for item in scored], expected, atol=1e-5)


def test_images_within_inputs_count(png: bytes, image_part: Any) -> None:
    app = create_app(FakeClient((FAKE_EMBEDDER,)), ApiSettings(max_images=1))
    refused = post(app, EMBEDDINGS, {"input": [{"content": [image_part(png)] * 2}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")


def test_more_inputs_than_allowed_are_refused(make_caller: Any) -> None:
    api = make_caller(max_inputs=2)
    assert api.post(EMBEDDINGS, {"model": "fake-clip", "input": ["a"] * 2}).status_code == 200
    refused = api.post(EMBEDDINGS, {"model": "fake-clip", "input": ["a"] * 3})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
