"""What many numbers take is done in pieces beside the event loop, and answers are what `JSONResponse` writes."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.responses import JSONResponse

from serving.api import piecewise
from serving.api.piecewise import in_pieces, written_array, written_list, written_object
from serving.api.service import Service
from serving.fake import FakeClient
from serving.settings import ApiSettings


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service(FakeClient(), ApiSettings(), 0)
    yield service
    service.reckoner.shutdown()


def threads_of(service: Service, costs_us: list[float]) -> list[str]:
    """Return the thread in which each item is made."""

    async def make() -> list[Any]:
        items = list(enumerate(costs_us))
        return await in_pieces(
            service, lambda item: (item[0], threading.current_thread().name), items, lambda item: item[1]
        )

    made = asyncio.run(make())
    assert [place for place, _ in made] == list(range(len(costs_us)))
    return [name for _, name in made]


def test_little_is_done_at_once_and_much_in_a_thread(service: Service) -> None:
    assert set(threads_of(service, [1.0] * 100)) == {threading.current_thread().name}
    assert threads_of(service, []) == []
    (name,) = set(threads_of(service, [1000.0] * 100))
    assert name.startswith("numbers")
    assert threads_of(service, [1e9]) == [name]


def test_others_have_their_turn_between_two_pieces(service: Service) -> None:
    order = list[str]()

    async def two() -> None:
        async def one(name: str) -> None:
            await in_pieces(service, lambda _: order.append(name), range(4), lambda _: 15_000)

        await asyncio.gather(one("a"), one("b"))

    asyncio.run(two())
    assert order == ["a", "b"] * 4


def test_a_failure_is_the_callers(service: Service) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(in_pieces(service, lambda item: 1 // item, [1, 0], lambda _: 1e6))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (1, 1), (0, 5)])
def test_arrays_are_written_as_their_lists(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert written_array(array, "float") == JSONResponse(array.tolist()).body
    told = base64.b64encode(array.tobytes()).decode()
    assert written_array(array, "base64") == JSONResponse(told).body


def test_objects_are_written_as_a_whole_one() -> None:
    head, data, tail = {"object": "list", "model": 'ä"'}, [{"a": 1}, {"b": None}], {"usage": {"n": 1}}
    items = written_list(json.dumps(each, separators=(",", ":")).encode() for each in data)
    assert written_object(head, "data", items, tail) == JSONResponse({**head, "data": data, **tail}).body
    assert written_object(head, "data", items) == JSONResponse({**head, "data": data}).body


def test_what_is_no_number_is_refused_as_before() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        written_array(np.array([np.nan], np.float32), "float")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["a", "b"]}),
        ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64"}),
        ("/pooling", {"input": ["a", "b"]}),
        ("/v1/classify", {"labels": ["a", "b"]}),
        ("/v1/rerank", {"query": "a", "documents": ["a", "b"]}),
    ],
)
def test_answers_are_the_same_in_pieces(
    api: Any, image_part: Any, png: bytes, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**body, **({"images": [image_part(png)]} if path == "/v1/classify" else {})}
    at_once = api.post(path, asked)
    assert at_once.status_code == 200, at_once.text
    monkeypatch.setattr(piecewise, "_AT_ONCE_US", -1)
    monkeypatch.setattr(piecewise, "_PIECE_US", 0)
    in_pieces = api.post(path, asked)
    assert in_pieces.headers["content-type"] == at_once.headers["content-type"] == "application/json"
    assert {**in_pieces.json(), "id": ""} == {**at_once.json(), "id": ""}
