import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime.cache_shape import CacheShape
from serving.engine.scheduler import Decode, Prefill, Scheduler
from serving.engine.sequence import Sequence
from serving.protocol import SamplingParams

EOS = 99
CAPACITY = 16


def sequence(prompt_tokens: int, max_tokens: int | None = None) -> Sequence:
    return Sequence("r", np.arange(prompt_tokens), SamplingParams(max_tokens=max_tokens), (EOS,))


def scheduler(num_slots: int = 2, chunk: int = 4) -> Scheduler:
    return Scheduler(CacheShape(num_slots, CAPACITY, 1), chunk)


def run(scheduler: Scheduler, work: Prefill | Decode, token: int = 1) -> list[tuple[Sequence, str]]:
    """Do what the engine does with a step that worked; return the sequences that finished."""
    if isinstance(work, Prefill):
        scheduler.advance(work)
    sampled = work.sequences if isinstance(work, Decode) else [work.sequence] * work.is_last
    return [(s, reason) for s in sampled if (reason := scheduler.append(s, token)) is not None]


def test_a_long_prompt_and_running_answers_take_turns() -> None:
    s = scheduler()
    first, second = sequence(3), sequence(12)
    s.add(first)
    run(s, s.schedule())
    s.add(second)
    kinds = []
    for _ in range(6):
        work = s.schedule()
        kinds.append((type(work).__name__, work.start if isinstance(work, Prefill) else len(work.sequences)))
        run(s, work)
    assert kinds == [("Decode", 1), ("Prefill", 0), ("Decode", 1), ("Prefill", 4), ("Decode", 1), ("Prefill", 8)]


def test_prompts_are_prefilled_first_come_first_served() -> None:
    s = scheduler(num_slots=3)
    prompts = [sequence(6) for _ in range(3)]
    for prompt in prompts:
        s.add(prompt)
    order = []
    while len(order) < 3:
        work = s.schedule()
        if isinstance(work, Prefill) and work.is_last:
            order.append(work.sequence)
        run(s, work)
    assert order == prompts


def test_a_slot_in_prefill_inside_the_decode_range_is_a_row_without_owner_at_its_own_length() -> None:
    s = scheduler(num_slots=3)
    first, second, third = sequence(2), sequence(2, max_tokens=1), sequence(2)
    for one in (first, second, third):
        s.add(one)
    while s.num_running == 3:
        run(s, s.schedule())
    s.add(sequence(12))
    seen = []
    for _ in range(12):
        work = s.schedule()
        if isinstance(work, Decode) and first in work.sequences and third in work.sequences:
            seen.append((work.start, work.rows[1].num_cached, work.rows[1].sequence is None))
        run(s, work)
    assert seen[:4] == [(0, 0, True), (0, 4, True), (0, 8, True), (0, 12, False)]


def test_an_answer_ends_at_the_end_token_at_max_tokens_and_at_capacity() -> None:
    endings = {}
    for name, max_tokens, token in (("eos", None, EOS), ("max", 3, 1), ("capacity", None, 1)):
        s, one = scheduler(), sequence(4, max_tokens)
        s.add(one)
        finished = []
        while not finished:
            finished = run(s, s.schedule(), token)
        endings[name] = (finished[0][1], len(one.output_ids))
        assert not s.has_work
    # 16 rows hold the prompt's 4 tokens and 12 sampled ones; the 13th is sampled and needs no row.
    assert endings == {"eos": ("stop", 1), "max": ("length", 3), "capacity": ("length", 13)}


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, CAPACITY - 1), st.integers(1, 6)),
        st.tuples(st.just("step"), st.just(0), st.sampled_from([1, 1, 1, EOS])),
        st.tuples(st.just("remove"), st.integers(0, 9), st.just(0)),
    ),
    max_size=80,
)


@given(ACTIONS)
def test_whatever_happens_slots_have_one_owner_steps_fit_and_every_sequence_ends_once(actions) -> None:
    s = scheduler(num_slots=3)
    live: list[Sequence] = []
    ended: list[Sequence] = []
    for kind, number, value in actions + [("step", 0, 1)] * 200:
        if kind == "add":
            live.append(sequence(number, value))
            s.add(live[-1])
        elif kind == "remove" and live:
            gone = live.pop(number % len(live))
            assert s.remove(gone)
            assert not s.remove(gone)
            ended.append(gone)
        elif kind == "step" and (work := s.schedule()) is not None:
            check_step(s, work, live)
            for finished, _ in run(s, work, value):
                live.remove(finished)
                ended.append(finished)
    assert not live
    assert not s.has_work
    assert s.num_cached_tokens == 0
    assert len(ended) == len(set(map(id, ended)))


def check_step(s: Scheduler, work: Prefill | Decode, live: list[Sequence]) -> None:
    slots = [one.slot for one in live if one.slot is not None]
    assert len(slots) == len(set(slots)) == s.num_running <= 3
    assert s.num_running + s.num_waiting == len(live)
    if isinstance(work, Prefill):
        assert work.sequence in live
        assert work.start == work.sequence.num_cached < work.end <= min(work.start + 4, CAPACITY)
        return
    assert work.sequences
    assert work.rows[0].sequence is not None
    assert work.rows[-1].sequence is not None
    for slot, row in enumerate(work.rows, work.start):
        owner = next((one for one in live if one.slot == slot), None)
        assert row.num_cached == (owner.num_cached if owner else 0) < CAPACITY
        assert row.sequence is (owner if owner and owner.is_prefilled else None)
