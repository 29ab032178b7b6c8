"""Who gets which variant of a canary, and how variants are compared; no cluster runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace

import pytest

from bundle.errors import EngineDeadError, ImageError, PocketVLMError, SettingsError
from serving.cluster.canary import Split, VariantFigures, check_canaries, compared
from serving.fake import FAKE_CLIP, FAKE_VLM
from serving.protocol import (
    EmbedRequest,
    FinishedEvent,
    GenerateEvent,
    GenerateRequest,
    Message,
    TextPart,
    Timings,
    TokenEvent,
    Usage,
)
from serving.ray_settings import Canary, live_settings

OLD, NEW = replace(FAKE_VLM, name="old"), replace(FAKE_VLM, name="new", weight_bytes=1)


def canary(old: int = 90, new: int = 10, **names: str) -> Canary:
    fields = {"name": "m", "first": "old", "second": "new", **names}
    variants = [{"model": fields["first"], "weight": old}, {"model": fields["second"], "weight": new}]
    return Canary.model_validate({"name": fields["name"], "variants": variants})


def conversation(number: int, *later: str) -> GenerateRequest:
    roles = ("user", "assistant")
    texts = (f"question {number}", *later)
    messages = tuple(Message(roles[at % 2], (TextPart(text),)) for at, text in enumerate(texts))
    return GenerateRequest(f"r{number}-{len(texts)}", "m", messages)


def shares(split: Split, requests: list[GenerateRequest | EmbedRequest]) -> Counter[str]:
    return Counter(split.variant_of(request) for request in requests)


def test_conversations_are_shared_out_by_the_weights() -> None:
    """Binomial: 2,000 draws at 10 % have a standard deviation of 13.4; five of them are allowed."""
    told = shares(Split(canary()), [conversation(number) for number in range(2000)])
    assert abs(told["new"] - 200) < 67
    assert shares(Split(canary(100, 0)), [conversation(number) for number in range(200)]) == {"old": 200}


def test_requests_without_a_conversation_are_shared_out_though_all_are_alike() -> None:
    told = shares(Split(canary(50, 50)), [EmbedRequest(f"r{at}", "m", (TextPart("x"),)) for at in range(400)])
    assert abs(told["new"] - 200) < 50


def test_a_conversation_keeps_its_variant_from_turn_to_turn() -> None:
    split = Split(canary(50, 50))
    for number in range(50):
        first = split.variant_of(conversation(number))
        assert Split(canary(50, 50)).variant_of(conversation(number, "answer", "and?")) == first


def test_only_those_move_that_a_new_weight_moves() -> None:
    requests = [conversation(number) for number in range(500)]
    before, after = Split(canary(90, 10)), Split(canary(70, 30))
    moved = [request for request in requests if before.variant_of(request) != after.variant_of(request)]
    assert all(before.variant_of(request) == "old" for request in moved)
    assert 60 < len(moved) < 140  # 20 % of 500, five standard deviations on either side


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([canary(second="nwe")], "names the variant 'nwe', which is not served; served: old, new, fake-clip"),
        ([canary(name="old")], "'old' has a name that is served already"),
        ([canary(), canary()], "'m' has a name that is served already"),
        ([canary(second="fake-clip")], "mixes models for dual-encoder and image-text-to-text"),
    ],
)
def test_a_canary_that_cannot_be_served_is_named(wrong: list[Canary], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_canaries(wrong, [OLD, NEW, FAKE_CLIP])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weights": {}}, "user_config weights: Extra inputs"),
        ({"canaries": [{"name": "m", "variants": [{"model": "a", "weight": 1}, {"model": "b", "weight": 2}]}]}, "to 3"),
    ],
)
def test_a_wrong_user_config_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        live_settings(fields)


async def answer(failure: Exception | None = None) -> AsyncGenerator[GenerateEvent, None]:
    yield TokenEvent("a", (1,))
    if failure is not None:
        raise failure
    yield FinishedEvent("stop", Usage(1, 1), Timings())


async def read(split: Split, failure: PocketVLMError | None = None) -> None:
    with suppress(PocketVLMError):
        async for _ in split.timed("new", answer(failure)):
            pass


def test_answers_failures_and_mistakes_of_callers_are_counted_apart() -> None:
    split = Split(canary())
    for failure in (None, EngineDeadError("x"), ImageError("no image")):
        asyncio.run(read(split, failure))
    told = split.told()
    assert (told["new"].num_requests, told["new"].num_failed, told["old"].num_requests) == (3, 1, 0)
    assert (len(told["new"].first_token_s), len(told["new"].total_s)) == (3, 1)


def test_a_client_that_leaves_is_neither_an_answer_nor_a_failure() -> None:
    split = Split(canary())

    async def leave() -> None:
        events = split.timed("new", answer())
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert split.told()["new"].num_requests == 0


def test_variants_are_compared_over_all_processes_beside_their_gates() -> None:
    one, other = VariantFigures(), VariantFigures()
    for at in range(1, 101):
        (one if at % 2 else other).end(at / 1000)
    one.fail(EngineDeadError("x"))
    told = compared(canary(), [{"new": one}, {"new": other}], {"old": OLD, "new": NEW})
    old, new = told["variants"]
    assert (told["name"], old["model"], old["weight"], old["requests"]) == ("m", "old", 90, 0)
    assert old["total_ms"] == {"n": 0, "p50": None, "p95": None}
    assert (new["requests"], new["failed"], new["total_ms"]) == (101, 1, {"n": 100, "p50": 50.0, "p95": 95.0})
    assert (new["gates"][0]["name"], new["gates"][0]["passed"], new["weight_bytes"]) == ("clear_agreement", True, 1)
