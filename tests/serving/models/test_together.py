import asyncio

import pytest

from serving.models.together import together


async def echo(value: int, ends: list[str]) -> int:
    try:
        await asyncio.sleep(0.001 if value < 9 else 60)
    except asyncio.CancelledError:
        ends.append("cancelled")
        raise
    if value < 0:
        raise ValueError(value)
    return value


def test_results_stand_in_the_order_of_the_work() -> None:
    assert asyncio.run(together(echo(n, []) for n in (3, 1, 2))) == [3, 1, 2]
    assert asyncio.run(together([])) == []


def test_a_failure_cancels_the_rest_and_so_does_a_caller_that_leaves() -> None:
    ends: list[str] = []

    async def main() -> None:
        with pytest.raises(ValueError, match="-1"):
            await together(echo(n, ends) for n in (9, -1, 9))
        await asyncio.sleep(0)
        assert ends == ["cancelled"] * 2
        task = asyncio.create_task(together(echo(n, ends) for n in (9, 9)))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        assert ends == ["cancelled"] * 4

    asyncio.run(main())
