"""`/pooling`: vectors, those of tokens, and scores of pairs, in vLLM's form."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import pytest

from serving.api.app import create_app
from serving.fake import FAKE_CLIP, FAKE_EMBEDDER, FAKE_RANKER, TOKENS_PER_IMAGE, FakeClient
from serving.settings import ApiSettings

TWO_TEXTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def asked(card: Any, body: dict[str, Any], path: str = "/pooling") -> httpx.Response:
    async def send() -> httpx.Response:
        app = create_app(FakeClient((card,)), ApiSettings())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post(path, json=body)

    return asyncio.run(send())


def test_vectors_are_those_of_embeddings_in_vllms_form(png: bytes, image_part: Any) -> None:
    body = {"input": ["a b", image_part(png)]}
    told = asked(FAKE_CLIP, body).json()
    wanted = asked(FAKE_CLIP, body, "/v1/embeddings").json()
    assert (told["object"], told["model"], told["usage"]) == ("list", "fake-clip", wanted["usage"])
    assert told["id"].startswith("pool-")
    assert [(item["index"], item["object"]) for item in told["data"]] == [(0, "pooling"), (1, "pooling")]
    assert [item["data"] for item in told["data"]] == [item["embedding"] for item in wanted["data"]]


def test_vectors_of_tokens_are_rows_and_base64_is_all_of_them(png: bytes, image_part: Any) -> None:
    joined = {"content": [image_part(png), {"type": "text", "text": "a b"}]}
    (item,) = asked(FAKE_EMBEDDER, {"input": [joined], "task": "token_embed"}).json()["data"]
    assert len(item["data"]) == TOKENS_PER_IMAGE + 2
    (encoded,) = asked(FAKE_EMBEDDER, {"input": [joined], "encoding_format": "base64"}).json()["data"]
    flat = np.frombuffer(base64.b64decode(encoded["data"]), "<f4")
    np.testing.assert_array_equal(flat.reshape(len(item["data"]), -1), np.array(item["data"], np.float32))


def test_a_cross_encoder_scores_inputs_of_two_parts(png: bytes, image_part: Any) -> None:
    pair = {"content": [{"type": "text", "text": "a"}, image_part(png)]}
    (score,) = asked(FAKE_RANKER, {"input": [pair]}).json()["data"][0]["data"]
    body = {"text_1": "a", "text_2": image_part(png)}
    assert score == asked(FAKE_RANKER, body, "/v1/score").json()["data"][0]["score"]
    raw = asked(FAKE_RANKER, {"input": [pair], "task": "score", "use_activation": False}).json()["data"][0]["data"]
    assert (1 + raw[0]) / 2 == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("card", "body", "param"),
    [
        (FAKE_CLIP, {"input": "a", "task": "classify"}, "task"),
        (FAKE_RANKER, {"input": "a", "task": "embed"}, "task"),
        (FAKE_RANKER, {"input": "a"}, "input"),
        (FAKE_RANKER, {"input": "a", "dimensions": 4}, "dimensions"),
        (FAKE_RANKER, {"input": [{"content": TWO_TEXTS}], "instruction": "Find."}, "instruction"),
        (FAKE_CLIP, {"input": "a", "task": "reward"}, "task"),
        (FAKE_CLIP, {"input": "a", "softmax": True}, "softmax"),
        (FAKE_CLIP, {}, "input"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(card: Any, body: dict[str, Any], param: str) -> None:
    response = asked(card, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
