"""Parts of images in requests: `box`, which reaches the engine, and what is no box."""

from __future__ import annotations

from typing import Any

import pytest

from serving.fake import FakeClient
from serving.protocol import ClassifyRequest, EmbedRequest, ImagePart, TextPart

BOX = [0.1, 0, 0.5, 1]
ROUTES = ("/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/classify", "/pooling")


@pytest.fixture
def seen(engine: FakeClient, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The parts of images and texts that reach the engine."""
    found: list[Any] = []
    embed, classify = engine.embed, engine.classify

    async def embedded(request: EmbedRequest) -> Any:
        found.extend(request.inputs)
        return await embed(request)

    async def classified(request: ClassifyRequest) -> Any:
        found.extend(request.images)
        return await classify(request)

    monkeypatch.setattr(engine, "embed", embedded)
    monkeypatch.setattr(engine, "classify", classified)
    return found


def body(route: str, image: Any) -> dict[str, Any]:
    bodies = {
        "/v1/embeddings": {"input": [image]},
        "/pooling": {"input": [image]},
        "/v1/rerank": {"query": "a", "documents": [image]},
        "/v1/score": {"text_1": "a", "text_2": image},
        "/v1/classify": {"images": [image], "labels": ["a", "b"]},
    }
    return {"model": "fake-clip", **bodies[route]}


@pytest.mark.parametrize("route", ROUTES)
def test_a_box_reaches_the_engine(route: str, api: Any, seen: list[Any], png: bytes, image_part: Any) -> None:
    assert api.post(route, body(route, image_part(png) | {"box": BOX})).status_code == 200
    assert [part for part in seen if not isinstance(part, TextPart)] == [ImagePart(png, (0.1, 0.0, 0.5, 1.0))]


def test_a_box_stands_in_an_input_of_one_part_and_in_a_message(
    api: Any, seen: list[Any], png: bytes, image_part: Any
) -> None:
    content = [image_part(png) | {"box": BOX}]
    assert api.post("/v1/rerank", body("/v1/rerank", {"content": content})).status_code == 200
    messages = {"model": "fake-clip", "messages": [{"role": "user", "content": content}]}
    assert api.post("/v1/embeddings", messages).status_code == 200
    assert [part.box for part in seen if isinstance(part, ImagePart)] == [tuple(BOX)] * 2


def test_a_box_that_is_null_is_none(api: Any, seen: list[Any], png: bytes, image_part: Any) -> None:
    assert api.post(ROUTES[0], body(ROUTES[0], image_part(png) | {"box": None})).status_code == 200
    assert seen == [ImagePart(png)]


@pytest.mark.parametrize(
    "box", [[0.1, 0, 0.5], [0.5, 0, 0.1, 1], [0, 0.5, 1, 0.5], [0, 0, 1.5, 1], "0,0,1,1", [0, 0, "a", 1]]
)
@pytest.mark.parametrize("route", ["/v1/embeddings", "/v1/classify"])
def test_what_is_no_box_is_refused_by_name(route: str, box: Any, api: Any, png: bytes, image_part: Any) -> None:
    error = api.post(route, body(route, image_part(png) | {"box": box})).json()["error"]
    assert "box" in error["param"]


def test_chats_have_no_boxes(api: Any, png: bytes, image_part: Any) -> None:
    message = {"role": "user", "content": [image_part(png) | {"box": BOX}]}
    response = api.post("/v1/chat/completions", {"model": "fake-vlm", "messages": [message]})
    assert response.status_code == 400
    assert "box" in response.json()["error"]["param"]
