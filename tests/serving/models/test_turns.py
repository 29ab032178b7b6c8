import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.models.fair_queue import FairQueue
from serving.models.turns import Turns


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


@given(st.lists(st.integers(0, 3), max_size=30))
def test_no_owner_gets_two_items_while_another_waits_for_one_and_each_owners_order_is_kept(owners: list[int]) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue()
    for index, owner in enumerate(owners):
        queue.push(owner, (owner, index))
    left = {owner: owners.count(owner) for owner in owners}
    order = []
    while queue:
        assert len(queue) == sum(left.values())
        order.append(queue.pop())
        left[order[-1][0]] -= 1
    for owner in set(owners):
        own = [index for each, index in order if each == owner]
        assert own == [index for index, each in enumerate(owners) if each == owner]
    for at, (owner, _) in enumerate(order[:-1]):
        others_wait = any(each != owner for each, _ in order[at + 1 :])
        assert order[at + 1][0] != owner or not others_wait


def test_what_is_removed_or_cleared_waits_no_more() -> None:
    queue: FairQueue[str] = FairQueue()
    for owner, item in (("a", "1"), ("a", "2"), ("b", "3")):
        queue.push(owner, item)
    assert queue.try_remove("a", "1")
    assert not queue.try_remove("a", "1")
    assert not queue.try_remove("c", "2")
    assert queue.clear() == ["2", "3"]
    assert not queue
    with pytest.raises(KeyError):
        queue.pop()


def test_who_wants_many_places_does_not_hold_up_who_wants_one() -> None:
    turns, order, go = Turns(1), [], asyncio.Event()

    async def take(owner: str, *, waits: bool = False) -> None:
        async with turns.place(owner):
            order.append(owner)
            if waits:
                await go.wait()

    async def main() -> None:
        tasks = [asyncio.create_task(take("first", waits=True))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(take(owner)) for owner in ("greedy", "greedy", "greedy", "modest")]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*tasks)

    run(main())
    assert order == ["first", "greedy", "modest", "greedy", "greedy"]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=12))
def test_no_place_is_lost_or_given_twice_whoever_leaves_and_when(arrivals: list[tuple[int, int, bool]]) -> None:
    turns, held, most_held = Turns(2), 0, 0

    async def take(owner: int, steps: int) -> None:
        nonlocal held, most_held
        async with turns.place(owner):
            held += 1
            most_held = max(most_held, held)
            try:
                for _ in range(steps):
                    await asyncio.sleep(0)
            finally:
                held -= 1

    async def main() -> None:
        tasks = []
        for owner, steps, leaves in arrivals:
            tasks.append(asyncio.create_task(take(owner, steps)))
            await asyncio.sleep(0)
            if leaves:
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with turns.place("a"), turns.place("b"):
            pass

    run(main())
    assert most_held <= 2
