"""What a replica does with an engine's events before Ray carries them; no cluster runs."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from pydantic import PydanticDeprecatedSince20

from bundle.errors import EngineDeadError
from serving.protocol import GenerateEvent, TokenEvent

with warnings.catch_warnings():
    # Ray 2.60 declares its own settings in a way that pydantic will drop.
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    from serving.cluster.replicas import gathered

EVENTS = [TokenEvent(text, (index,)) for index, text in enumerate("abcde")]


async def at_once(failure: Exception | None = None) -> AsyncIterator[GenerateEvent]:
    for event in EVENTS:
        yield event
    if failure is not None:
        raise failure


async def one_by_one() -> AsyncIterator[GenerateEvent]:
    for event in EVENTS:
        yield event
        await asyncio.sleep(0.05)


def pieces_of(events: AsyncIterator[GenerateEvent]) -> list[list[GenerateEvent]]:
    async def read() -> list[list[GenerateEvent]]:
        return [each async for each in gathered(events)]

    return asyncio.run(read())


def test_events_that_are_there_travel_together_and_others_as_they_come() -> None:
    assert pieces_of(at_once()) == [EVENTS]
    assert pieces_of(one_by_one()) == [[event] for event in EVENTS]


def test_events_before_a_failure_are_told_before_it() -> None:
    told = []

    async def read() -> None:
        async for each in gathered(at_once(EngineDeadError("it died"))):
            told.extend(each)

    with pytest.raises(EngineDeadError, match="it died"):
        asyncio.run(read())
    assert told == EVENTS


def test_closing_ends_the_reading_of_the_engine() -> None:
    is_ended = False

    async def endless() -> AsyncIterator[GenerateEvent]:
        nonlocal is_ended
        try:
            while True:
                yield EVENTS[0]
                await asyncio.sleep(0.01)
        finally:
            is_ended = True

    async def leave() -> None:
        async with aclosing(endless()) as events, aclosing(gathered(events)) as pieces:
            await anext(pieces)

    asyncio.run(leave())
    assert is_ended
