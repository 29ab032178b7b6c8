"""Texts and images ordered and scored by a dual encoder's vectors."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest

from serving.api.app import create_app
from serving.fake import FAKE_CLIP, FAKE_RANKER, FakeClient
from serving.settings import ApiSettings

RERANK, SCORE = "/v1/rerank", "/v1/score"


def vectors(api: Any, *inputs: Any) -> Any:
    data = api.post("/v1/embeddings", {"model": "fake-clip", "input": list(inputs)}).json()["data"]
    return np.array([item["embedding"] for item in data])


def test_documents_are_ordered_by_their_dot_products(api: Any, png: bytes, image_part: Any) -> None:
    documents = ["a", {"text": "b"}, image_part(png), {"type": "text", "text": "c"}, "a"]
    told = api.post(RERANK, {"model": "fake-clip", "query": "q", "documents": documents}).json()
    query, *others = vectors(api, "q", "a", "b", image_part(png), "c", "a")
    expected = np.array(others) @ query
    scores = [result["relevance_score"] for result in told["results"]]
    assert scores == sorted(scores, reverse=True)
    for result in told["results"]:
        np.testing.assert_allclose(result["relevance_score"], expected[result["index"]], atol=1e-6)  # float32
    by_index = {result["index"]: result["document"] for result in told["results"]}
    assert by_index == {0: {"text": "a"}, 1: {"text": "b"}, 2: {"type": "image"}, 3: {"text": "c"}, 4: {"text": "a"}}
    same = [result["index"] for result in told["results"] if result["index"] in (0, 4)]
    assert same == [0, 4]  # equals keep their order


@pytest.mark.parametrize("model", ["fake-clip", "fake-ranker"])
def test_a_document_of_one_part_is_that_part(model: str, png: bytes, image_part: Any) -> None:
    """As vLLM's clients write a document, {"content": [part]}."""
    app = create_app(FakeClient((FAKE_CLIP, FAKE_RANKER)), ApiSettings())
    body = {"model": model, "query": "q", "return_documents": False}
    one, bare = (
        post(app, RERANK, {**body, "documents": [document]})
        for document in ({"content": [image_part(png)]}, image_part(png))
    )
    assert (one.status_code, bare.status_code) == (200, 200), one.text
    assert one.json()["results"] == bare.json()["results"]


def test_an_image_may_be_the_query_and_few_results_wanted(api: Any, png: bytes, image_part: Any) -> None:
    query = {"image": image_part(png)["image_url"]["url"]}
    asked = {"query": query, "documents": ["a", "b", "c"], "top_n": 2, "return_documents": False}
    results = api.post(RERANK, asked).json()["results"]
    assert len(results) == 2
    assert all(set(result) == {"index", "relevance_score"} for result in results)


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [("a", "b", [(0, 0)]), ("a", ["b", "c"], [(0, 0), (0, 1)]), (["a", "d"], ["b", "c"], [(0, 0), (1, 1)])],
)
def test_pairs_are_scored(api: Any, first: Any, second: Any, pairs: list[tuple[int, int]]) -> None:
    data = api.post(SCORE, {"text_1": first, "text_2": second}).json()["data"]
    left, right = (vectors(api, *([each] if isinstance(each, str) else each)) for each in (first, second))
    expected = [left[a] @ right[b] for a, b in pairs]
    np.testing.assert_allclose([item["score"] for item in data], expected, atol=1e-6)  # float32


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (RERANK, {"query": "a", "documents": []}, "documents"),
        (RERANK, {"query": "", "documents": ["a"]}, "query"),
        (RERANK, {"query": "a"}, "documents"),
        (RERANK, {"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        (RERANK, {"query": "a", "documents": ["a"] * 257}, "documents"),
        (RERANK, {"query": "a", "documents": [{"image": "http://x/y.png"}]}, "documents.0.image"),
        (RERANK, {"query": "a", "documents": ["a"], "mood": 1}, "mood"),
        (RERANK, {"query": "a", "documents": ["a"], "model": "fake-vlm"}, "model"),
        (SCORE, {"text_1": ["a", "b"], "text_2": ["a"]}, "text_1"),
        (SCORE, {"text_1": "a"}, "text_2"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(api: Any, path: str, body: dict[str, Any], param: str) -> None:
    response = api.post(path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_more_images_than_allowed_are_refused(make_caller: Any, png: bytes, image_part: Any) -> None:
    api = make_caller(max_images=1)
    assert api.post(RERANK, {"query": "a", "documents": [image_part(png)] * 2}).status_code == 400


@pytest.fixture
def ranker() -> Any:
    """An application over a fake cross-encoder."""
    return create_app(FakeClient((FAKE_RANKER,)), ApiSettings())


def post(app: Any, path: str, body: dict[str, Any]) -> Any:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post(path, json=body)

    return asyncio.run(send())


def test_a_cross_encoder_reads_query_and_document_together(ranker: Any, png: bytes, image_part: Any) -> None:
    body = {"query": image_part(png), "documents": ["a", "b c", "d"]}
    told = post(ranker, RERANK, body).json()
    scored = post(ranker, SCORE, {"text_1": image_part(png), "text_2": body["documents"]}).json()
    by_index = {result["index"]: result["relevance_score"] for result in told["results"]}
    assert [item["score"] for item in scored["data"]] == [by_index[place] for place in range(3)]
    assert [result["relevance_score"] for result in told["results"]] == sorted(by_index.values(), reverse=True)
    assert told["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    pairs = post(ranker, SCORE, {"text_1": ["a", "b"], "text_2": [image_part(png)] * 2}).json()["data"]
    assert len(pairs) == 2
    refused = post(ranker, RERANK, {**body, "instruction": "Find it."})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "instruction")
    assert post(ranker, "/v1/embeddings", {"input": "a", "model": "fake-ranker"}).status_code == 400


def test_a_failure_has_its_status(api: Any, engine: FakeClient) -> None:
    engine.behaviour.failure = MemoryError()
    assert api.post(SCORE, {"text_1": "a", "text_2": "b"}).status_code == 503
