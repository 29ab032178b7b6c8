"""The engine thread under load, faults and cancellations, with a real (tiny) decoder."""

import asyncio
import copy
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bundle.errors import DeadlineError, EngineDeadError, MachineError
from quant.kv.compressing import Compression
from runtime.decoder import Decoder
from runtime.filled_prompt import FilledPrompt
from runtime.session import Session
from serving.engine.changes import GiveBack, Move
from serving.engine.engine import Engine
from serving.engine.pace import Pace
from serving.engine.runner import Runner
from serving.engine.sampling.sampler import Sampler
from serving.engine.sampling.state import SamplingState
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.engine.streams import Ended, Failed, Sampled, StreamEvent, TokenStream
from serving.protocol import M3ID, VCD, Contrast, SamplingParams
from serving.settings import EngineSettings
from serving.watch import Patience

EOS = 60
CAPACITY = 48
PATIENT = Patience(60.0, 60.0)


class FaultyRunner:
    """A real runner some of whose steps raise."""

    def __init__(self, runner: Runner, faults: dict[int, BaseException], before: Callable[[], None] = lambda: None):
        self._runner, self._faults, self._before = runner, faults, before
        self.num_steps = 0

    def _count(self) -> None:
        self._before()
        self.num_steps += 1
        if self.num_steps - 1 in self._faults:
            raise self._faults[self.num_steps - 1]

    def change(self, changes):
        self._runner.change(changes)

    def run(self, batch):
        self._count()
        return self._runner.run(batch)

    def compress(self, sequence, until_s):
        self._count()
        return self._runner.compress(sequence, 0.0)  # a layer at a time

    def hand_out(self, sequence):
        self._runner.hand_out(sequence)


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    sampling: SamplingParams
    cancel_after: int | None = None
    is_late: bool = False
    num_kept: int | None = None
    shadow: tuple[int, ...] | None = None

    @property
    def kept_rows(self) -> list[int] | None:
        """The first 4 rows of the prompt and its last ones, at least one of them; None where all stay."""
        num_rows = len(self.prompt)
        if self.num_kept is None or self.num_kept >= num_rows:
            return None
        sinks = min(4, self.num_kept - 1)
        return [*range(sinks), *range(num_rows - self.num_kept + sinks, num_rows)]

    def sequence(self) -> Sequence:
        prompt, deadline_s = FilledPrompt.of_ids(np.array(self.prompt, np.int64)), 0.0 if self.is_late else math.inf
        compression = None if self.kept_rows is None else Compression("streaming-llm", len(self.kept_rows))
        made = Sequence("r", prompt, self.sampling, (EOS,), deadline_s=deadline_s, compression=compression)
        if self.shadow is None:
            return made
        other = Sequence("r", FilledPrompt.of_ids(np.array(self.shadow, np.int64)), SamplingParams(), (EOS,))
        return Sequence("r", prompt, self.sampling, (EOS,), deadline_s=deadline_s, shadow=other)


@dataclass(frozen=True)
class Expected:
    """An answer, and how many of its tokens rounding cannot change."""

    tokens: list[int]
    num_decided: int

    def is_begun_by(self, found: list[int]) -> bool:
        """True when `found` is the beginning of the answer, as far as that is decided."""
        return self._clipped(found) == self._clipped(self.tokens)[: len(found)]

    def is_given_by(self, found: list[int]) -> bool:
        """True when `found` is the answer, as far as that is decided."""
        return self._clipped(found) == self._clipped(self.tokens)

    @property
    def is_decided(self) -> bool:
        return self.num_decided == len(self.tokens)

    def _clipped(self, tokens: list[int]) -> list[int]:
        return tokens if self.is_decided else tokens[: self.num_decided]


class Reading:
    """One prompt and its answer in a cache of its own."""

    def __init__(self, oracle: "Oracle", prompt: tuple[int, ...], kept_rows: list[int] | None = None) -> None:
        self._oracle, self._num_prompt, self._kept_rows = oracle, len(prompt), kept_rows
        self.cache = {
            state.input: np.zeros([{"B": 1, "S": CAPACITY}.get(str(size), size) for size in state.shape], np.float32)
            for state in oracle.states
        }
        self.ids, self.past, self.position = list(prompt), 0, 0

    def read(self) -> np.ndarray:
        """Return the logits [V] behind the tokens that are yet to be read."""
        ids, past, position = self.ids, self.past, self.position
        inputs = {
            "inputs_embeds": self._oracle.embed_tokens.run({"input_ids": np.array([ids])})["inputs_embeds"],
            "position_ids": np.arange(position, position + len(ids))[None],
            "past_lengths": np.array([[past]]),
            "logits_indices": np.array([[len(ids) - 1]]),
        }
        outputs = self._oracle.decoder.run({**inputs, **self.cache})
        self.cache = {state.input: outputs[state.output] for state in self._oracle.states}
        self.past, self.position, self.ids = past + len(ids), position + len(ids), []
        if self.position == self._num_prompt and (kept := self._kept_rows) is not None:
            self.cache = {name: rows_first(array, kept) for name, array in self.cache.items()}
            self.past = len(kept)
        return outputs["logits"][0, 0]


def contrasted(own: np.ndarray, other: np.ndarray, num_tokens: int, how: Contrast | None) -> np.ndarray:
    """Return what is chosen from, by the papers' formulas in float64."""
    own, other = own.astype(np.float64), other.astype(np.float64)
    if isinstance(how, VCD):
        found = (1 + how.alpha) * own - how.alpha * other
        chances = np.exp(own - own.max())
        return np.where(chances >= how.beta * chances.max(), found, -np.inf)
    log_own, log_other = (each - np.log(np.exp(each - each.max()).sum()) - each.max() for each in (own, other))
    if how is None or np.exp(log_own).max() >= how.confidence:
        return own
    gamma = np.exp(-how.decay * num_tokens)
    return log_own + (1 - gamma) / gamma * (log_own - log_other)


class Oracle:
    """Answers of a model to one prompt alone: whole-prompt prefill, plain runs, no slots, no engine."""

    def __init__(self, model, settings: EngineSettings) -> None:
        self.embed_tokens = Session(model.bundle, "embed_tokens", settings)
        self.decoder = Session(model.bundle, "decoder", settings)
        self.states = model.bundle.manifest.states
        self._known: dict[tuple, Expected] = {}

    def answer(self, request: Request, most_rows: int = 10**6) -> Expected:
        """Return the answer of a request; a pair's ends where both hold so many rows."""
        key = (request.prompt, request.sampling, request.num_kept, request.shadow, request.shadow and most_rows)
        if key not in self._known:
            self._known[key] = self._run(request, most_rows)
        return self._known[key]

    def _run(self, request: Request, most_rows: int) -> Expected:
        own = Reading(self, request.prompt, request.kept_rows)
        other = None if request.shadow is None else Reading(self, request.shadow)
        readings = [own] if other is None else [own, other]
        how, state = request.sampling.contrast, SamplingState(replace(request.sampling, contrast=None))
        tokens: list[int] = []
        decided: list[bool] = []
        while all(each.past + len(each.ids) <= CAPACITY for each in readings):
            logits = own.read()
            if other is None:
                rows = [logits, *near(logits)]
            else:
                against = other.read()
                pairs = zip([logits, *near(logits)], [against, *near(against, 1)], strict=True)
                rows = [contrasted(*pair, len(tokens), how).astype(np.float32) for pair in pairs]
            decided.append(len({chosen(copy.deepcopy(state), row.copy()) for row in rows}) == 1)
            tokens.append(chosen(state, rows[0]))
            if tokens[-1] == EOS or len(tokens) == request.sampling.max_tokens:
                break
            if other is not None and own.past + other.past + 2 > most_rows:
                break
            for each in readings:
                each.ids = tokens[-1:]
        return Expected(tokens, len(tokens) if all(decided) else decided.index(False))


def rows_first(rows: np.ndarray, kept: list[int]) -> np.ndarray:
    """Return rows [1, K, S, C] with some of them in front and nothing that counts behind."""
    moved = np.full_like(rows, 7.0)
    moved[:, :, : len(kept)] = rows[:, :, kept]
    return moved


def chosen(state: SamplingState, logits: np.ndarray) -> int:
    [choice] = Sampler().choose(logits[None], [state])
    return choice.token_id


def near(logits: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """Return logits a rounding error away, of which each has to give the same token.

    A decode batch multiplies matrices of another height than a lone row, which orders float32 sums differently: here
    by about 1e-6 of logits near 5. 1e-4 is far above that, and leaves one token in several thousand undecided.
    """
    rng = np.random.default_rng(seed)
    return [logits + rng.uniform(-1e-4, 1e-4, logits.shape).astype(np.float32) for _ in range(4)]


@pytest.fixture(scope="module")
def runner(tiny_model, settings) -> Runner:
    return tiny_model.runner(settings)


@pytest.fixture(scope="module")
def roomy_runner(tiny_model, settings) -> Runner:
    """One with slots that only keep rows."""
    return Runner(Decoder(tiny_model.graphs(settings), replace(tiny_model.shape(settings), num_spare_slots=3)))


@pytest.fixture(scope="module")
def oracle(tiny_model, settings) -> Oracle:
    return Oracle(tiny_model, settings)


@pytest.fixture
def engine_of(tiny_model, settings):
    engines = []

    def make(runner, patience: Patience = PATIENT, *, keeps_prefixes: bool = True, **shape) -> Engine:
        scheduler = Scheduler(
            replace(tiny_model.shape(settings), **shape),
            Pace(settings.chunk_tokens, math.inf),
            keeps_prefixes=keeps_prefixes,
        )
        engines.append(Engine("engine-test", runner, scheduler, patience))
        engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
        assert engine.is_dead


async def read(engine: Engine, stream: TokenStream, cancel_after: int | None = None) -> list[StreamEvent]:
    """Return every event up to the terminal one, cancelling after some tokens."""
    events: list[StreamEvent] = []
    while not events or isinstance(events[-1], Sampled):
        if len(events) == cancel_after:
            engine.cancel(stream)
        events.append(await asyncio.wait_for(stream.get(), 20))
    return events


async def serve(engine: Engine, requests: list[Request]) -> list[tuple[TokenStream, list[StreamEvent]]]:
    streams = [engine.submit(request.sequence()) for request in requests]
    reads = [read(engine, s, request.cancel_after) for s, request in zip(streams, requests, strict=True)]
    events = await asyncio.gather(*reads)
    for stream in streams:  # nothing follows the terminal event
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.get(), 0.001)
    return list(zip(streams, events, strict=True))


def tokens_of(events: list[StreamEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Sampled)]


NUM_KEPT = st.one_of(st.none(), st.integers(1, 30))
SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.one_of(st.none(), st.integers(1, 12)),
    temperature=st.sampled_from([0.0, 0.0, 1.5]),
    top_k=st.sampled_from([0, 8]),
    seed=st.integers(0, 3),
)
CONTRAST = st.one_of(
    st.builds(VCD, alpha=st.sampled_from([0.0, 0.5, 1.0]), beta=st.sampled_from([0.0, 0.1, 0.5])),
    st.builds(M3ID, decay=st.sampled_from([0.02, 0.5]), confidence=st.sampled_from([0.01, 0.3, 1.0])),
)
CANCEL_AFTER = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 5))
PAIR = st.builds(
    Request,
    prompt=st.lists(st.integers(6, 59), min_size=1, max_size=20).map(tuple),
    shadow=st.lists(st.integers(6, 59), min_size=1, max_size=20).map(tuple),
    sampling=st.builds(lambda sampling, contrast: replace(sampling, contrast=contrast), SAMPLING, CONTRAST),
    cancel_after=CANCEL_AFTER,
    is_late=st.sampled_from([False, False, False, True]),
)
REQUESTS = st.lists(
    st.one_of(
        st.builds(
            Request,
            prompt=st.lists(st.integers(6, 59), min_size=1, max_size=CAPACITY - 1).map(tuple),
            sampling=SAMPLING,
            cancel_after=st.one_of(st.none(), st.none(), st.integers(0, 5)),
            num_kept=NUM_KEPT,
        ),
        PAIR,
    ),
    min_size=1,
    max_size=9,
)
FAULTS = st.dictionaries(st.integers(0, 40), st.just(RuntimeError("injected")), max_size=3)
FIXTURES_ARE_SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@given(requests=REQUESTS, faults=FAULTS)
@hypothesis_settings(max_examples=60, suppress_health_check=FIXTURES_ARE_SHARED)
def test_every_request_ends_once_and_answers_as_if_alone_whatever_its_mates_suffer(
    runner, oracle, engine_of, requests, faults
) -> None:
    engine = engine_of(FaultyRunner(runner, faults))
    check_served(engine, oracle, requests, faults)


ALIKE = st.lists(
    st.one_of(
        st.builds(
            Request,
            prompt=st.lists(
                st.sampled_from([(7, 8, 9, 10, 11), (12, 13), (14, 15, 16, 17, 18, 19)]), min_size=1, max_size=7
            ).map(lambda parts: tuple(token for part in parts for token in part)),
            sampling=SAMPLING,
            cancel_after=CANCEL_AFTER,
            is_late=st.sampled_from([False, False, False, True]),
            num_kept=NUM_KEPT,
        ),
        PAIR,
    ),
    min_size=1,
    max_size=12,
)


@given(requests=ALIKE, faults=FAULTS, budget_rows=st.integers(CAPACITY, 3 * CAPACITY), keeps_prefixes=st.booleans())
@hypothesis_settings(max_examples=60, suppress_health_check=FIXTURES_ARE_SHARED)
def test_so_it_is_where_prompts_are_alike_memory_is_short_and_time_is_over(
    roomy_runner, oracle, engine_of, requests, faults, budget_rows, keeps_prefixes
) -> None:
    engine = engine_of(
        FaultyRunner(roomy_runner, faults), keeps_prefixes=keeps_prefixes, num_spare_slots=3, budget_rows=budget_rows
    )
    check_served(engine, oracle, requests, faults)


def check_served(engine: Engine, oracle: Oracle, requests: list[Request], faults: dict[int, BaseException]) -> None:
    """Serve requests, hold each against its answer alone, and close the engine."""
    served = asyncio.run(serve(engine, requests))
    for request, (_, events) in zip(requests, served, strict=True):
        alone = oracle.answer(request, int(engine.gauges["kv_cache_rows"]))
        match events[-1]:
            case Ended(None):
                assert request.cancel_after is not None
                assert alone.is_begun_by(tokens_of(events))
            case Ended(reason):
                assert not request.is_late
                assert alone.is_given_by(tokens_of(events))
                assert not alone.is_decided or reason == ("stop" if alone.tokens[-1] == EOS else "length")
            case Failed(DeadlineError()):
                assert request.is_late
                assert not tokens_of(events)
            case Failed(error):
                assert faults
                assert isinstance(error, MachineError)
                assert "injected" in str(error)
                assert alone.is_begun_by(tokens_of(events))
    assert engine.gauges["num_requests_running"] == 0
    assert engine.gauges["kv_cache_usage_perc"] == 0
    assert not engine.has_work
    engine.close()


def greedy(*prompt: int, max_tokens: int | None = None) -> Request:
    return Request(prompt, SamplingParams(max_tokens=max_tokens))


def test_a_failed_step_fails_its_own_requests_and_later_ones_are_answered(runner, oracle, engine_of) -> None:
    engine = engine_of(FaultyRunner(runner, {0: RuntimeError("no memory")}))
    lost, kept = greedy(7, 8, 9, max_tokens=4), greedy(9, 8, max_tokens=4)
    (_, first), (_, second) = asyncio.run(serve(engine, [lost, kept]))
    assert [type(event) for event in first] == [Failed]
    assert "no memory" in str(first[0].error)
    assert oracle.answer(kept).is_given_by(tokens_of(second))
    assert engine.fault == ""


def test_a_choice_of_rows_that_fails_fails_its_own_request_alone(runner, oracle, engine_of) -> None:
    are_here = threading.Event()
    faulty = FaultyRunner(runner, {}, lambda: are_here.wait(20) and None)
    compress = faulty.compress
    engine = engine_of(faulty)
    lost = Request(tuple(range(7, 37)), SamplingParams(max_tokens=6), num_kept=5)
    others = [greedy(7, 8, 9, max_tokens=9), greedy(9, 8, max_tokens=4)]

    def fail_at_the_second_layer(sequence, until_s):
        if sequence.compressing is not None:
            raise RuntimeError("injected")
        return compress(sequence, until_s)

    faulty.compress = fail_at_the_second_layer

    async def main() -> None:
        streams = [engine.submit(request.sequence()) for request in (others[0], lost, others[1])]
        are_here.set()
        first, failed, second = [await read(engine, stream) for stream in streams]
        assert [type(event) for event in failed] == [Sampled, Failed]
        for request, events in zip(others, (first, second), strict=True):
            assert oracle.answer(request).is_given_by(tokens_of(events))

    asyncio.run(main())
    # What was begun to be dropped is found by nobody.
    asyncio.run(serve(engine, [again := Request(lost.prompt, lost.sampling)]))
    ((_, events),) = asyncio.run(serve(engine, [again]))
    assert oracle.answer(again).is_given_by(tokens_of(events))
    assert engine.fault == ""


@pytest.mark.parametrize("fault", range(3, 24))
def test_a_step_that_fails_loses_no_row_of_those_it_did_not_run(runner, oracle, engine_of, fault: int) -> None:
    """Among these steps are prompts that run just after an answer ended and another's rows are due to move."""
    are_here = threading.Event()
    engine = engine_of(FaultyRunner(runner, {fault: RuntimeError("injected")}, lambda: are_here.wait(20) and None))
    requests = [greedy(*[6] * 22, max_tokens=4), greedy(6), greedy(6), greedy(*range(7, 40), max_tokens=5)]

    async def main() -> None:
        streams = [engine.submit(request.sequence()) for request in requests]
        are_here.set()
        for request, stream in zip(requests, streams, strict=True):
            events = await read(engine, stream)
            assert oracle.answer(request).is_begun_by(tokens_of(events))
            assert isinstance(events[-1], Failed) or oracle.answer(request).is_given_by(tokens_of(events))

    asyncio.run(main())


def test_a_dead_worker_fails_what_it_has_and_what_comes_and_says_so(runner, engine_of) -> None:
    are_here = threading.Event()
    engine = engine_of(FaultyRunner(runner, {3: SystemExit("killed")}, lambda: are_here.wait(20) and None))

    async def main() -> None:
        streams = [engine.submit(greedy(*prompt).sequence()) for prompt in ((7, 8), (9,), (10, 11), (12,), (13,))]
        are_here.set()
        for stream in streams:
            events = await read(engine, stream)
            assert isinstance(events[-1], Failed)
            assert isinstance(events[-1].error, EngineDeadError)
        with pytest.raises(EngineDeadError, match="SystemExit: killed"):
            engine.submit(greedy(7).sequence())

    asyncio.run(main())
    assert engine.is_dead
    assert "engine-test died" in engine.fault


def test_requests_on_their_way_to_a_dying_worker_still_end(runner, engine_of) -> None:
    """Submissions race with death: each is refused or gets its terminal event."""
    engine = engine_of(FaultyRunner(runner, {2: SystemExit("killed")}))

    async def main() -> int:
        reads = []
        for i in range(400):
            try:
                reads.append(read(engine, engine.submit(greedy(6 + i % 50).sequence())))
            except EngineDeadError:
                break
            if i % 10 == 0:
                await asyncio.sleep(0)
        ends = [events[-1] for events in await asyncio.gather(*reads)]
        assert all(isinstance(end, Failed) and isinstance(end.error, EngineDeadError) for end in ends)
        return len(ends)

    assert asyncio.run(main()) > 0


def test_a_stuck_step_is_reported_and_recovers(runner, engine_of) -> None:
    release = threading.Event()
    engine = engine_of(FaultyRunner(runner, {}, lambda: release.wait(20) and None), Patience(0.05, 0.2))

    async def main() -> None:
        stream = engine.submit(greedy(7, max_tokens=2).sequence())
        while not engine.fault:
            await asyncio.sleep(0.01)
        assert "finished no step" in engine.fault
        assert not engine.is_dead
        release.set()
        assert isinstance((await read(engine, stream))[-1], Ended)

    asyncio.run(main())
    assert engine.fault == ""


def test_a_stall_fails_what_runs_waits_and_comes_and_a_thread_that_goes_on_serves_again(runner, engine_of) -> None:
    release, is_held = threading.Event(), threading.Event()

    def hang() -> None:
        if not release.is_set():
            is_held.set()
            release.wait(20)

    engine = engine_of(FaultyRunner(runner, {}, hang), Patience(0.05, 60.0))

    async def main() -> None:
        running = engine.submit(greedy(7, max_tokens=2).sequence())
        await asyncio.to_thread(is_held.wait, 20)
        waiting = engine.submit(greedy(8, max_tokens=2).sequence())  # its message is still in the inbox
        while not engine.fault:
            await asyncio.sleep(0.01)
        engine.relieve()
        engine.relieve()
        for stream in (running, waiting):
            event = await asyncio.wait_for(stream.get(), 20)
            assert isinstance(event, Failed)
            assert "finished no step" in str(event.error)
        with pytest.raises(EngineDeadError, match="finished no step"):
            engine.submit(greedy(9).sequence())
        assert not engine.needs_restart
        release.set()
        while engine.fault:
            await asyncio.sleep(0.01)
        assert isinstance((await read(engine, engine.submit(greedy(7, max_tokens=2).sequence())))[-1], Ended)
        assert engine.gauges["num_requests_running"] == 0
        assert not running._events
        assert not waiting._events

    asyncio.run(main())


def test_a_thread_that_hangs_for_too_long_needs_a_restart(runner, engine_of) -> None:
    release = threading.Event()
    engine = engine_of(FaultyRunner(runner, {}, lambda: release.wait(20) and None), Patience(0.05, 0.3))

    async def main() -> None:
        stream = engine.submit(greedy(7, max_tokens=2).sequence())
        while not engine.fault:
            await asyncio.sleep(0.01)
        while not engine.needs_restart:
            await asyncio.sleep(0.01)
        release.set()
        await read(engine, stream)
        assert not engine.needs_restart

    asyncio.run(main())


def test_a_sampler_that_fails_ends_its_own_answer_alone(runner, engine_of) -> None:
    engine = engine_of(runner)

    class Broken(SamplingState):
        def take(self, token_id: int) -> None:
            raise ZeroDivisionError("no luck")

    async def main() -> None:
        bad = greedy(7, max_tokens=2).sequence()
        bad.sampling_state = Broken(bad.sampling)
        streams = [engine.submit(bad), engine.submit(greedy(8, max_tokens=2).sequence())]
        failed, ended = [(await read(engine, stream))[-1] for stream in streams]
        assert isinstance(failed, Failed)
        assert "no luck" in str(failed.error)
        assert isinstance(ended, Ended)

    asyncio.run(main())
    assert engine.fault == ""


def test_a_choice_that_fails_for_a_whole_batch_ends_that_batch_and_no_more(runner, engine_of, monkeypatch) -> None:
    """As where a device does not give its logits away."""
    engine = engine_of(runner)
    choose, faults = Sampler.choose, [RuntimeError("injected")]

    def faulty(*arguments):
        if faults:
            raise faults.pop()
        return choose(*arguments)

    monkeypatch.setattr(Sampler, "choose", faulty)
    drawn = Request((7,), SamplingParams(max_tokens=2, temperature=1.0, seed=1))

    async def main() -> None:
        failed = (await read(engine, engine.submit(drawn.sequence())))[-1]
        assert isinstance(failed, Failed)
        assert "injected" in str(failed.error)
        ended = (await read(engine, engine.submit(drawn.sequence())))[-1]
        assert isinstance(ended, Ended)

    asyncio.run(main())
    assert (engine.fault, engine.gauges["num_requests_running"]) == ("", 0)


def test_a_cancelled_request_gives_its_slot_to_the_next(tiny_model, settings) -> None:
    one_slot = settings.model_copy(update={"max_sequences": 1})
    permits = threading.Semaphore(1)
    runner = FaultyRunner(tiny_model.runner(one_slot), {}, lambda: permits.acquire(timeout=20) and None)
    engine = Engine("engine-test", runner, Scheduler(tiny_model.shape(one_slot), Pace(7, math.inf)), PATIENT)
    engine.start()

    async def main() -> None:
        endless = engine.submit(greedy(7).sequence())
        await endless.get()  # the engine now waits for a permit to make the second token
        waiting = engine.submit(greedy(8, max_tokens=1).sequence())
        engine.cancel(endless)
        permits.release(2)
        assert isinstance((await read(engine, waiting))[-1], Ended)
        assert (await read(engine, endless))[-1] == Ended(None)

    asyncio.run(main())
    engine.close()
    assert runner.num_steps <= 3  # the endless one made at most the token it was waiting to make


def test_a_reader_whose_loop_is_gone_does_not_keep_its_slot(runner, engine_of) -> None:
    running = threading.Event()
    engine = engine_of(FaultyRunner(runner, {}, lambda: running.wait(20) and None))

    async def leave() -> None:
        engine.submit(greedy(7).sequence())

    asyncio.run(leave())
    running.set()
    (_, events), *_ = asyncio.run(serve(engine, [greedy(9, max_tokens=2)]))
    assert isinstance(events[-1], Ended)
    assert engine.gauges["num_requests_running"] <= 1


def test_answers_that_end_in_one_step_have_no_rows_moved_for_them(runner, engine_of) -> None:
    """One that leaves makes the last one move into its place; here all leave."""
    moves, are_here = list[Move](), threading.Event()

    class Watched(FaultyRunner):
        def change(self, due):
            moves.extend(each for each in due if isinstance(each, Move))
            super().change(due)

    engine = engine_of(Watched(runner, {}, lambda: are_here.wait(20) and None), keeps_prefixes=False)

    async def main() -> None:
        # All prompts run before the first step.
        alike = [greedy(*range(7 + at, 11 + at), max_tokens=4).sequence() for at in range(3)]
        streams = [engine.submit(sequence) for sequence in alike]
        are_here.set()
        for stream in streams:
            assert isinstance((await read(engine, stream))[-1], Ended)
        assert isinstance((await read(engine, engine.submit(greedy(9, max_tokens=2).sequence())))[-1], Ended)

    asyncio.run(main())
    assert moves == []


def test_what_is_cleared_gives_its_memory_back_though_nothing_runs(runner, engine_of) -> None:
    changes, is_done = [], threading.Event()

    class Watched(FaultyRunner):
        def change(self, due):
            super().change(due)
            changes.extend(due)
            if any(isinstance(each, GiveBack) for each in due):
                is_done.set()

    engine = engine_of(Watched(runner, {}))
    asyncio.run(serve(engine, [greedy(7, 8, 9, max_tokens=2)]))
    assert engine.gauges["prefix_cache_bytes"] > 0
    engine.clear_prefixes()
    assert is_done.wait(20)
    assert engine.gauges["prefix_cache_bytes"] == 0
    assert GiveBack(0, 0) in changes


def test_closing_fails_what_is_unfinished(runner, engine_of) -> None:
    engine = engine_of(FaultyRunner(runner, {}))

    async def main() -> None:
        stream = engine.submit(greedy(7).sequence())
        await stream.get()
        await asyncio.to_thread(engine.close)
        end = (await read(engine, stream))[-1]
        assert isinstance(end, Ended) or "was stopped" in str(end.error)

    asyncio.run(main())
