import asyncio
import gc
import threading
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from bundle.errors import EngineDeadError, ImageError, MachineError, OutOfMemoryError
from serving.models.crew import Crew
from serving.watch import Patience

PATIENT = Patience(60.0, 60.0)


@pytest.fixture
def crew():
    crew = Crew("crew-test", 1, PATIENT)
    yield crew
    crew.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def test_owners_take_turns_however_much_each_has(crew) -> None:
    go, order = threading.Event(), []

    async def main() -> None:
        held = asyncio.create_task(crew.run("first", go.wait, 20))
        await asyncio.sleep(0)
        greedy = [asyncio.create_task(crew.run("greedy", order.append, f"greedy {i}")) for i in range(5)]
        await asyncio.sleep(0)
        modest = asyncio.create_task(crew.run("modest", order.append, "modest"))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(held, *greedy, modest)

    run(main())
    assert order == ["greedy 0", "modest", "greedy 1", "greedy 2", "greedy 3", "greedy 4"]


@pytest.mark.parametrize("panic", [BaseException("panicked"), SystemExit("panicked"), RuntimeError("panicked")])
def test_whatever_a_call_raises_reaches_its_caller_and_the_thread_lives_on(crew, panic: BaseException) -> None:
    def fail() -> None:
        raise panic

    async def main() -> None:
        with pytest.raises(MachineError, match="panicked"):
            await crew.run("r", fail)
        assert await crew.run("r", lambda: 3) == 3

    run(main())


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ImageError("bad"), ImageError),
        (MemoryError(), OutOfMemoryError),
        (RuntimeError("can't start new thread"), OutOfMemoryError),
        (RuntimeError("another"), MachineError),
    ],
)
def test_an_error_raised_on_purpose_stays_and_lack_of_memory_is_told_as_such(crew, raised, told) -> None:
    def fail() -> None:
        raise raised

    async def main() -> None:
        with pytest.raises(told):
            await crew.run("r", fail)

    run(main())


class Ballast:
    def __call__(self) -> None:
        raise AssertionError("it was called though nobody waits")


def test_what_nobody_waits_for_is_dropped_and_let_go_at_once(crew) -> None:
    go = threading.Event()
    ballast = Ballast()
    kept = weakref.ref(ballast)

    async def main(ballast: Ballast) -> None:
        held = asyncio.create_task(crew.run("first", go.wait, 20))
        dropped = asyncio.create_task(crew.run("second", ballast))
        await asyncio.sleep(0.05)
        dropped.cancel()
        await asyncio.gather(dropped, return_exceptions=True)
        assert crew.num_waiting == 0
        go.set()
        await held

    run(main(ballast))
    del ballast
    gc.collect()
    assert kept() is None


def test_a_call_that_hangs_fails_and_the_other_threads_go_on() -> None:
    crew, go = Crew("crew-test", 2, Patience(0.05, 60.0)), threading.Event()

    async def main() -> None:
        hung = asyncio.create_task(crew.run("r", go.wait, 20))
        await asyncio.sleep(0.2)
        crew.relieve()
        with pytest.raises(EngineDeadError, match=r"took over 0\.05 s for one call"):
            await hung
        assert await crew.run("other", lambda: 3) == 3
        assert crew.fault == ""
        go.set()

    run(main())
    crew.close()


def test_with_every_thread_hung_what_waits_fails_new_calls_are_refused_and_a_return_heals() -> None:
    crew, go = Crew("crew-test", 1, Patience(0.05, 0.4)), threading.Event()

    async def main() -> None:
        hung = asyncio.create_task(crew.run("r", go.wait, 20))
        waiting = asyncio.create_task(crew.run("other", lambda: 3))
        await asyncio.sleep(0.2)
        crew.relieve()
        for task in (hung, waiting):
            with pytest.raises(EngineDeadError):
                await task
        assert "all of 1 threads hang" in crew.fault
        with pytest.raises(EngineDeadError, match="all of 1 threads hang"):
            await crew.run("new", lambda: 3)
        while not crew.needs_restart:
            await asyncio.sleep(0.01)
        go.set()
        while crew.fault:
            await asyncio.sleep(0.01)
        assert not crew.needs_restart
        assert await crew.run("new", lambda: 3) == 3

    run(main())
    crew.close()


def test_closing_fails_what_waits_and_leaves_no_thread(crew) -> None:
    go = threading.Event()

    async def main() -> None:
        held = asyncio.create_task(crew.run("first", go.wait, 20))
        waiting = asyncio.create_task(crew.run("second", lambda: 3))
        await asyncio.sleep(0.05)
        crew.close()
        with pytest.raises(EngineDeadError, match="stopped"):
            await waiting
        with pytest.raises(EngineDeadError, match="stopped"):
            await crew.run("third", lambda: 3)
        go.set()
        await held

    run(main())
    for thread in threading.enumerate():
        if thread.name.startswith("crew-test"):
            thread.join(20)
            assert not thread.is_alive()
