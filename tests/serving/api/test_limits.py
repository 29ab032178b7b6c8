"""Every limit of a body stands before the work that it limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from bundle.errors import OverloadedError
from serving.api import body
from serving.api.app import create_app
from serving.api.budget import BodyBudget
from serving.fake import FakeClient
from serving.settings import ApiSettings

CHAT = "/v1/chat/completions"
JSON_HEADERS = {"Content-Type": "application/json"}


def send(api: Any, content: bytes, path: str = CHAT) -> tuple[int, dict[str, Any]]:
    response = api.request("POST", path, content=content, headers=JSON_HEADERS)
    return response.status_code, response.json().get("error", {})


@pytest.mark.parametrize("piece", [b"1,", b"[", b"{", b'"a":1,'])
def test_values_are_counted_before_a_body_is_parsed(make_caller: Any, piece: bytes) -> None:
    api = make_caller(max_json_values=100)
    status, error = send(api, b"this is no JSON " + piece * 101)
    assert status == 400
    assert "more than 100 commas and opening brackets" in error["message"]
    assert "is not JSON" in send(api, b"this is no JSON " + piece * 100)[1]["message"]


def test_escapes_are_counted_before_a_body_is_parsed(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "_MAX_ESCAPES", 100)
    assert "backslashes" in send(api, b"no JSON" + b"\\n" * 101)[1]["message"]
    assert "is not JSON" in send(api, b"no JSON" + b"\\n" * 100)[1]["message"]


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("path", "fields", "limit", "param", "noun"),
    [
        (CHAT, {"messages": [1] * 9}, "max_messages", "messages", "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [1] * 9}]}, "max_parts", "messages.0.content", "parts"),
        (CHAT, {"messages": [{"role": "system", "content": [1] * 9}]}, "max_parts", "messages.0.content", "parts"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 3}] * 3},
            "max_parts",
            "messages",
            "parts",
        ),
        ("/v1/embeddings", {"input": [None] * 9}, "max_inputs", "input", "inputs"),
        ("/v1/embeddings", {"input": [1] * 9}, "max_text_characters", "input.0", "tokens"),
        ("/v1/embeddings", {"messages": [1] * 9}, "max_inputs", "messages", "inputs"),
        ("/v1/classify", {"images": [1] * 9, "labels": ["a"]}, "max_images", "images", "images"),
        ("/v1/classify", {"images": [IMAGE], "labels": [1] * 9}, "max_labels", "labels", "labels"),
    ],
)
def test_a_list_is_counted_before_its_items_are_looked_at(
    make_caller: Any, path: str, fields: dict[str, Any], limit: str, param: str, noun: str
) -> None:
    content = json.dumps({"model": "fake-vlm", **fields}).encode()
    status, error = send(make_caller(**{limit: 8}), content, path)
    assert (status, error["param"]) == (400, param)
    assert f"9 {noun}; one request may hold 8" in error["message"]
    if '"messages": [{' not in content.decode():
        assert "one request may hold" not in send(make_caller(**{limit: 9}), content, path)[1]["message"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a"}], **{f"f{at}": 1 for at in range(20_000)}}, "f0"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}, *[1] * 1000]}, "messages.1"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}] * 1000}]}, "messages.0.content.0.text"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "metadata": dict.fromkeys("abc", 1)}, "metadata.a"),
        ("/v1/embeddings", {"input": [None] * 200}, "input.0"),
        ("/v1/responses", {"input": "a", "include": [None] * 16}, "include.0"),
        ("/v1/classify", {"images": [IMAGE], "labels": [None] * 1000}, "labels.0"),
    ],
)
def test_the_first_fault_is_told_and_the_rest_is_not_looked_at(
    api: Any, monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, Any], param: str
) -> None:
    from serving.api import parsing

    counts = []

    def counted(problems: Any, found: Any) -> Exception:
        counts.append(len(problems))
        return explain(problems, found)

    explain = parsing.explain
    monkeypatch.setattr(parsing, "explain", counted)
    status, error = send(api, json.dumps({"model": "fake-clip", **fields}).encode(), path)
    assert (status, error["param"]) == (400, param)
    assert counts[0] <= 6  # one fault; as many errors as a union has members


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a" * 9}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "user": "a" * 9}, "user"),
        ("/v1/embeddings", {"input": ["a", "a" * 9]}, "input.1"),
        ("/v1/classify", {"images": [IMAGE], "labels": ["a" * 9]}, "labels.0"),
    ],
)
def test_a_text_that_no_model_holds_is_refused_before_it_is_looked_at(
    make_caller: Any, path: str, fields: dict[str, Any], param: str
) -> None:
    content = json.dumps({"model": "fake-vlm", **fields}).encode()
    status, error = send(make_caller(max_text_characters=8), content, path)
    assert (status, error["param"]) == (400, param)
    assert "9 characters; one text may hold 8" in error["message"]
    assert "one text may hold" not in json.dumps(send(make_caller(max_text_characters=9), content, path)[1])


def test_a_label_that_is_there_twice_is_found_among_many_at_once(make_caller: Any) -> None:
    """Comparing each with each of 30,000 would take half a minute."""
    labels = [f"l{at}" for at in range(30_000)] + ["l29999"]
    content = json.dumps({"model": "fake-clip", "images": [IMAGE], "labels": labels}).encode()
    status, error = send(make_caller(max_labels=40_000), content, "/v1/classify")
    assert (status, error["message"]) == (400, "label 'l29999' is there twice; labels must differ")


def test_a_message_never_writes_out_what_it_was_sent(api: Any) -> None:
    long = "x" * 1_000_000
    for fields in ({long: 1}, {"temperature": long}, {"user": [long] * 9}, {"messages": {long: long}}, {"n": long}):
        chat = {"model": "fake-vlm", "messages": [{"role": "user", "content": "a"}], **fields}
        assert len(send(api, json.dumps(chat).encode())[1]["message"]) < 400
    assert len(send(api, json.dumps({"model": long, "messages": []}).encode())[1]["message"]) < 400


def test_a_budget_is_shared_and_given_back() -> None:
    budget = BodyBudget(100)
    with budget.share() as first:
        first.grow(60, 0)
        with budget.share() as second:
            second.grow(40, 0)
            with pytest.raises(
                OverloadedError, match="hold 60 bytes, and this one 41 or more; all of them may hold 100"
            ):
                second.grow(41, 0)
            second.drop()
            first.grow(100, 0)
        assert budget.held_bytes == 100
    assert budget.held_bytes == 0


def test_what_is_announced_must_fit_and_is_not_held() -> None:
    budget = BodyBudget(100)
    with budget.share() as first, budget.share() as second:
        first.grow(1, 100)
        second.grow(1, 99)
        with pytest.raises(OverloadedError):
            second.grow(1, 100)
        assert budget.held_bytes == 2


def test_bodies_are_held_until_their_requests_end_and_one_too_many_is_told_to_come_again(
    engine: FakeClient, ask: Callable[..., Any]
) -> None:
    app = create_app(engine, ApiSettings(max_bodies_bytes=2048))
    content = json.dumps(ask(stream=True)).encode().ljust(1500)
    engine.behaviour.token_s = 0.2

    async def main() -> tuple[httpx.Response, ...]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            first = asyncio.create_task(client.post(CHAT, content=content, headers=JSON_HEADERS))
            while not engine.num_running:
                await asyncio.sleep(0.01)
            second = await client.post(CHAT, content=content, headers=JSON_HEADERS)
            return await first, second, await client.post(CHAT, content=content, headers=JSON_HEADERS)

    first, second, third = asyncio.run(main())
    assert [each.status_code for each in (first, second, third)] == [200, 429, 200]
    assert second.headers["retry-after"] == "1"


def test_a_large_body_is_answered_like_a_small_one(api: Any, ask: Callable[..., Any]) -> None:
    """It takes the way over another thread, with its faults."""
    chat = ask("hello there", stop="never")
    large = json.dumps(chat).encode().ljust(200_000)
    small_status, large_status = api.post(CHAT, chat).status_code, send(api, large)[0]
    assert (small_status, large_status) == (200, 200)
    wrong = json.dumps({**chat, "top_k": "many"}).encode().ljust(200_000)
    assert send(api, wrong)[1]["param"] == "top_k"


def arriving(pieces: list[tuple[float, bytes]], **limits: Any) -> tuple[int, dict[str, Any]]:
    """Send pieces, each after a wait, and return status and error."""

    async def content() -> Any:
        for wait_s, piece in pieces:
            await asyncio.sleep(wait_s)
            yield piece

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(FakeClient(), ApiSettings(**limits)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(CHAT, content=content(), headers=JSON_HEADERS)

    response = asyncio.run(main())
    return response.status_code, response.json().get("error", {})


def test_a_body_that_stops_arriving_is_given_up_with_an_answer() -> None:
    status, error = arriving([(0, b"{"), (60, b"}")], body_timeout_s=0.2)
    assert (status, error["code"]) == (408, "body_timeout")
    assert "brought 1 bytes in 0.2 s; a client must send 4096 bytes a second" in error["message"]


def test_a_body_that_trickles_is_given_up_too() -> None:
    assert arriving([(0.05, b" ")] * 100, body_timeout_s=0.5, body_bytes_per_s=100)[0] == 408


def test_a_slow_body_that_keeps_its_pace_is_waited_for(ask: Callable[..., Any]) -> None:
    content = json.dumps(ask()).encode()
    pieces = [(0.1, b" " * 100)] * 12 + [(0, content)]
    assert arriving(pieces, body_timeout_s=1.0, body_bytes_per_s=100)[0] == 200
