"""What readers see of a stream, and how often their loop is called for it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from bundle.errors import MachineError
from runtime.filled_prompt import FilledPrompt
from serving.engine.sampling.choice import Choice
from serving.engine.sequence import Sequence
from serving.engine.streams import Ended, Failed, Sampled, TokenStream, wake
from serving.protocol import SamplingParams


class CountingLoop(asyncio.SelectorEventLoop):
    """A loop that counts the calls of other threads."""

    num_calls = 0

    def call_soon_threadsafe(self, *arguments, **options):
        self.num_calls += 1
        return super().call_soon_threadsafe(*arguments, **options)


def stream_of(loop: asyncio.AbstractEventLoop) -> TokenStream:
    prompt = FilledPrompt.of_ids(np.array([1, 2], np.int64))
    return TokenStream(Sequence("r", prompt, SamplingParams(), ()), loop)


def sampled(token_id: int) -> Sampled:
    return Sampled(Choice(token_id), 0.0)


def test_many_streams_of_a_loop_are_told_by_one_call() -> None:
    with asyncio.Runner(loop_factory=CountingLoop) as runner:

        async def main() -> list[Sampled]:
            loop = asyncio.get_running_loop()
            streams = [stream_of(loop) for _ in range(9)]
            reads = [asyncio.ensure_future(stream.get()) for stream in streams]
            await asyncio.sleep(0)  # all of them wait
            before = loop.num_calls
            for at, stream in enumerate(streams):
                assert stream.try_put(sampled(at))
            assert wake(streams) == []
            assert loop.num_calls == before + 1
            return await asyncio.wait_for(asyncio.gather(*reads), 20)

        assert runner.run(main()) == [sampled(at) for at in range(9)]


def test_the_first_terminal_event_is_the_last_that_is_read_whoever_woke_the_reader() -> None:
    async def main() -> None:
        stream, failed = stream_of(asyncio.get_running_loop()), Failed(MachineError("broken"))
        assert stream.try_put(sampled(7))
        assert stream.try_put(failed)  # by whoever watches the engine's thread, before that has woken anybody
        assert not stream.try_put(sampled(8))
        assert not stream.try_put(Ended("stop"))
        wake([stream, stream])
        assert [await asyncio.wait_for(stream.get(), 20) for _ in range(2)] == [sampled(7), failed]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.get(), 0.001)

    asyncio.run(main())


def test_an_event_that_comes_while_the_reader_is_busy_is_there_when_it_asks() -> None:
    async def main() -> int:
        stream = stream_of(asyncio.get_running_loop())
        for token_id in range(3):
            stream.try_put(sampled(token_id))
            wake([stream])
            await asyncio.sleep(0)
            assert await asyncio.wait_for(stream.get(), 20) == sampled(token_id)
        waiting = asyncio.ensure_future(stream.get())
        await asyncio.sleep(0)
        stream.try_put(sampled(3))
        wake([stream])
        return (await asyncio.wait_for(waiting, 20)).token_id

    assert asyncio.run(main()) == 3


def test_streams_of_a_closed_loop_are_told_back_and_those_of_another_are_woken() -> None:
    gone = asyncio.new_event_loop()
    lost = stream_of(gone)
    gone.close()

    async def main() -> None:
        here = stream_of(asyncio.get_running_loop())
        lost.try_put(sampled(1))
        here.try_put(sampled(2))
        assert wake([lost, here]) == [lost]
        assert await asyncio.wait_for(here.get(), 20) == sampled(2)

    asyncio.run(main())
