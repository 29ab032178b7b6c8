import math
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cache_shape import CacheShape
from runtime.filled_prompt import FilledPrompt
from serving.engine.changes import Keep
from serving.engine.pace import Pace
from serving.engine.scheduler import Batch, Scheduler
from serving.engine.sequence import Sequence
from serving.protocol import SamplingParams

EOS = 99
CAPACITY = 16


FRESH = count(1000, CAPACITY)


def sequence(prompt_tokens: int, max_tokens: int | None = None) -> Sequence:
    """Return one whose prompt has no token of another's."""
    first = next(FRESH)
    prompt = FilledPrompt.of_ids(np.arange(first, first + prompt_tokens))
    return Sequence("r", prompt, SamplingParams(max_tokens=max_tokens), (EOS,))


def scheduler(num_slots: int = 2, chunk: int = 4) -> Scheduler:
    return Scheduler(CacheShape(num_slots, CAPACITY, 1), Pace(chunk, math.inf))


def run(scheduler: Scheduler, batch: Batch, token: int = 1) -> list[tuple[Sequence, str]]:
    """Do what the engine does with a step that worked; return the sequences that finished."""
    scheduler.advance(batch)
    sampled = [row.sequence for row in batch.rows if row.is_last]
    return [(s, reason) for s in sampled if (reason := scheduler.append(s, token)) is not None]


def test_a_long_prompt_and_running_answers_take_turns() -> None:
    s = scheduler()
    first, second = sequence(3), sequence(12)
    s.add(first)
    run(s, s.schedule())
    s.add(second)
    seen = []
    for _ in range(6):
        batch = s.schedule()
        seen.append((batch.phase, batch.rows[0].start if batch.phase == "prompt" else len(batch.rows)))
        run(s, batch)
    assert seen == [("step", 1), ("prompt", 0), ("step", 1), ("prompt", 4), ("step", 1), ("prompt", 8)]


def test_short_prompts_run_one_after_another_while_the_gap_between_tokens_has_room() -> None:
    s = Scheduler(CacheShape(6, CAPACITY, 1), Pace(8, 1.0))
    prompts = [sequence(4, max_tokens=9) for _ in range(6)]
    for prompt in prompts:
        s.add(prompt)
    phases = []
    while len(phases) < 9:
        batch = s.schedule()
        phases.append(batch.phase)
        s.advance(batch, took_s=0.1 * 4 if batch.phase == "prompt" else 0.1)
        for row in batch.rows:
            if row.is_last:
                s.append(row.sequence, 1)
    # Nothing was measured of steps at first; then two prompts of 0.4 s and a step of 0.1 s fill a second.
    assert phases == [*["prompt"] * 2, "step", *["prompt"] * 2, "step", *["prompt"] * 2, "step"]


def test_prompts_are_run_first_come_first_served() -> None:
    s = scheduler(num_slots=3)
    prompts = [sequence(6) for _ in range(3)]
    for prompt in prompts:
        s.add(prompt)
    order = []
    while len(order) < 3:
        batch = s.schedule()
        if batch.phase == "prompt" and batch.rows[0].is_last:
            order.append(batch.rows[0].sequence)
        run(s, batch)
    assert order == prompts


@pytest.mark.parametrize("num_tokens", range(1, 14))
def test_the_last_tokens_of_a_prompt_run_as_a_prompt_and_never_one_alone(num_tokens: int) -> None:
    s, one = scheduler(chunk=4), sequence(num_tokens)
    s.add(one)
    cuts = []
    while not one.num_output_tokens:
        batch = s.schedule()
        assert batch.phase == "prompt"
        cuts.append(batch.rows[0].end - batch.rows[0].start)
        run(s, batch)
    assert sum(cuts) == num_tokens
    assert max(cuts) <= 4
    assert cuts[-1] > 1 or num_tokens == 1


def test_a_hole_in_the_slots_is_not_run() -> None:
    s = scheduler(num_slots=3)
    answers = [sequence(2), sequence(2), sequence(2)]
    for one in answers:
        s.add(one)
    while not all(one.num_output_tokens for one in answers):
        run(s, s.schedule())
    s.remove(answers[0])
    batch = s.schedule()
    assert [row.sequence.slot for row in batch.rows] == [0, 1]
    assert set(batch.sequences) == set(answers[1:])
    assert len(s.take_changes()) == 1
    assert s.take_changes() == ()


def test_an_answer_ends_at_the_end_token_at_max_tokens_and_at_capacity() -> None:
    endings = {}
    for name, max_tokens, token in (("eos", None, EOS), ("max", 3, 1), ("capacity", None, 1)):
        s, one = scheduler(), sequence(4, max_tokens)
        s.add(one)
        finished = []
        while not finished:
            finished = run(s, s.schedule(), token)
        endings[name] = (finished[0][1], one.num_output_tokens)
        assert not s.has_work
    # 16 rows hold the prompt's 4 tokens and 12 sampled ones; the 13th is sampled and needs no row.
    assert endings == {"eos": ("stop", 1), "max": ("length", 3), "capacity": ("length", 13)}


def test_a_preempted_sequence_goes_before_all_others_and_keeps_what_it_said() -> None:
    s = scheduler(num_slots=1)
    first, second = sequence(6), sequence(2)
    s.add(first)
    s.add(second)
    while first.num_output_tokens < 3:
        run(s, s.schedule())
    assert s.preempt(first)
    assert (first.num_run, first.rows, first.slot, first.num_output_tokens) == (0, [0], None, 3)
    assert first.next_position == 9
    phases = []
    while first.num_output_tokens == 3:
        batch = s.schedule()
        assert batch.sequences == [first]
        phases.append((batch.phase, batch.rows[0].start, batch.rows[0].end))
        run(s, batch)
    # The prompt again by the graph for prompts, what was sampled by the one for steps; the newest token as ever.
    assert phases == [("prompt", 0, 4), ("prompt", 4, 6), ("step", 6, 8), ("step", 8, 9)]
    assert not s.preempt(second)


def test_a_sequence_that_outgrew_a_slot_by_losing_rows_is_not_preempted() -> None:
    s, one = scheduler(num_slots=1), sequence(8)
    s.add(one)
    while len(one.ids) <= 16:
        run(s, s.schedule())
        if one.num_output_tokens and one.rows[0] > 8:
            s.keep(one, 0, np.arange(4))
    assert not s.preempt(one)
    assert one.slot == 0
    s.take_changes()
    run(s, s.schedule())


def test_a_model_that_keeps_no_rows_is_full_by_its_tokens() -> None:
    s, one = scheduler(), sequence(8)
    one.rows, one.num_length_groups = [], 0
    s.add(one)
    finished = []
    while not finished:
        finished = run(s, s.schedule())
    assert (finished[0][1], one.num_run) == ("length", 16)


def test_dropped_rows_make_room_and_leave_positions_alone() -> None:
    s, one = scheduler(), sequence(8)
    s.add(one)
    while not one.num_output_tokens:
        run(s, s.schedule())
    position = one.next_position
    s.keep(one, 0, np.array([0, 7]))
    assert (one.rows, one.num_run, one.next_position) == ([2], 8, position)
    (change,) = s.take_changes()
    assert isinstance(change, Keep)
    with pytest.raises(ValueError, match="does not hold all of the rows"):
        s.keep(one, 0, np.array([2]))
    while not run(s, s.schedule()):
        assert one.rows[0] <= CAPACITY
    assert one.num_output_tokens == CAPACITY - 2 + 1


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, CAPACITY - 1), st.integers(1, 6)),
        st.tuples(st.just("step"), st.just(0), st.sampled_from([1, 1, 1, EOS])),
        st.tuples(st.just("remove"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("preempt"), st.integers(0, 9), st.just(0)),
    ),
    max_size=80,
)


@given(ACTIONS)
def test_whatever_happens_slots_have_one_owner_steps_fit_and_every_sequence_ends_once(actions) -> None:
    s = scheduler(num_slots=3)
    live: list[Sequence] = []
    ended: list[Sequence] = []
    for kind, number, value in actions + [("step", 0, 1)] * 300:
        if kind == "add":
            live.append(sequence(number, value))
            s.add(live[-1])
        elif kind == "remove" and live:
            gone = live.pop(number % len(live))
            assert s.remove(gone)
            assert not s.remove(gone)
            ended.append(gone)
        elif kind == "preempt" and live:
            s.preempt(live[number % len(live)])
        elif kind == "step" and (batch := s.schedule()) is not None:
            check_step(s, batch, live)
            for finished, _ in run(s, batch, value):
                live.remove(finished)
                ended.append(finished)
    assert not live
    assert not s.has_work
    assert s.num_cached_rows == 0
    assert len(ended) == len(set(map(id, ended)))


def check_step(s: Scheduler, batch: Batch, live: list[Sequence]) -> None:
    slots = [one.slot for one in live if one.slot is not None]
    assert len(slots) == len(set(slots)) == s.num_running <= 3
    assert set(batch.sequences) <= set(live)
    for row in batch.rows:
        assert row.start == row.sequence.num_run == row.sequence.rows[0] < row.end
        assert row.end <= min(len(row.sequence.ids), CAPACITY)
    if len(batch.rows) == 1 and not batch.rows[0].sequence.is_decoding:
        assert batch.rows[0].end - batch.rows[0].start <= 4
        return
    # Every sequence that decodes is in the batch, side by side from the first slot.
    assert [row.sequence.slot for row in batch.rows] == list(range(len(batch.rows)))
    assert set(batch.sequences) == {one for one in live if one.slot is not None and one.is_decoding}


def decoding(s: Scheduler, sequences: list[Sequence]) -> None:
    """Run until sequences decode."""
    for each in sequences:
        s.add(each)
    while not all(each.is_decoding for each in sequences):
        run(s, s.schedule())


def test_an_answer_that_is_read_again_lets_the_others_go_on_meanwhile() -> None:
    token_s, step_s, gap_s = 0.002, 0.02, 0.1
    s = Scheduler(CacheShape(4, 2048, 1), Pace(256, gap_s))
    running, preempted = sequence(20), sequence(20)
    decoding(s, [running, preempted])
    while preempted.num_output_tokens < 600:
        run(s, s.schedule())
    s.preempt(preempted)
    waited_s = longest_s = 0.0
    while preempted.slot is None or not preempted.is_decoding:
        batch = s.schedule()
        is_step = running in batch.sequences
        took_s = step_s if is_step else token_s * (batch.rows[0].end - batch.rows[0].start)
        s.advance(batch, took_s)
        for row in batch.rows:
            if row.is_last:
                s.append(row.sequence, 1)
        waited_s += took_s
        longest_s = max(longest_s, waited_s)
        waited_s = 0.0 if is_step else waited_s
    assert longest_s < 2 * gap_s


def test_an_answer_that_was_begun_is_never_late() -> None:
    s = scheduler()
    begun, new = sequence(3), sequence(3)
    begun.deadline_s = new.deadline_s = 5.0
    decoding(s, [begun])
    s.preempt(begun)
    s.add(new)
    assert s.late(6.0) == [new]


def test_a_free_slot_is_taken_where_nothing_bounds_rows() -> None:
    s = scheduler(num_slots=4, chunk=CAPACITY)
    decoding(s, [sequence(12) for _ in range(3)])
    s.add(last := sequence(14))
    run(s, s.schedule())
    run(s, s.schedule())
    assert last.slot is not None


def pair(prompt_tokens: int, shadow_tokens: int, max_tokens: int | None = None) -> Sequence:
    """Return a sequence with a shadow."""
    made, shadow = sequence(prompt_tokens, max_tokens), sequence(shadow_tokens)
    return Sequence("r", made.prompt, made.sampling, (EOS,), shadow=shadow)


def test_a_pair_is_seated_where_there_is_room_for_both_the_shadow_first() -> None:
    s = scheduler(num_slots=3)
    one, two, later = pair(3, 4), pair(2, 2), sequence(2)
    for each in (one, two, later):
        s.add(each)
    batch = s.schedule()
    assert [row.sequence for row in batch.rows] == [one.shadow]
    assert batch.rows[0].is_last
    s.advance(batch)
    run(s, s.schedule())
    assert (one.num_output_tokens, one.shadow.ids[-1], one.shadow.num_output_tokens) == (1, 1, 1)
    steps = [s.schedule() for _ in range(3)]
    # One seat is free, which is too few for the next pair; who came later does not overtake it.
    assert [{*batch.sequences} for batch in steps] == [{one, one.shadow}] * 3
    shadow = one.shadow
    assert s.remove(one)
    assert (one.slot, shadow.slot, s.num_running) == (None, None, 0)
    assert s.schedule().sequences == [two.shadow]


def test_half_a_pair_that_leaves_takes_its_shadow_along() -> None:
    s = scheduler(num_slots=2)
    one, shadow = (made := pair(3, 4)), made.shadow
    s.add(one)
    s.advance(s.schedule())
    assert (shadow.slot, one.slot) == (0, None)
    assert s.remove(one)
    assert shadow.slot is None
    assert not s.has_work
    assert s.schedule() is None


def test_a_pair_is_preempted_and_read_again_as_one() -> None:
    s = scheduler(num_slots=2)
    one = pair(3, 4)
    s.add(one)
    while one.num_output_tokens < 3:
        batch = s.schedule()
        s.advance(batch)
        for row in batch.rows:
            if row.is_last and row.sequence.casts is None:
                s.append(row.sequence, 1)
    assert s.preempt(one)
    assert [(each.num_run, each.slot, each.num_output_tokens) for each in one.together] == [(0, None, 3)] * 2
    seen = []
    while len(seen) < 5:
        batch = s.schedule()
        s.advance(batch)
        seen.append([(row.sequence.casts is not None, row.start, row.end) for row in batch.rows])
    # Each is read to the token sampled last, prompt and answer apart; that one runs of both together.
    assert seen == [[(True, 0, 4)], [(True, 4, 6)], [(False, 0, 3)], [(False, 3, 5)], [(True, 6, 7), (False, 5, 6)]]


ACTS = st.lists(
    st.tuples(st.sampled_from(["one", "pair", "step", "step", "step", "cancel", "preempt"]), st.integers(0, 7)),
    max_size=60,
)


@given(acts=ACTS, budget_rows=st.sampled_from([None, CAPACITY, 2 * CAPACITY]))
def test_whatever_comes_and_goes_pairs_run_side_by_side_and_all_ends(
    acts: list[tuple[str, int]], budget_rows: int | None
) -> None:
    s = Scheduler(CacheShape(4, CAPACITY, 1, budget_rows=budget_rows), Pace(2, math.inf))
    live: list[Sequence] = []
    shadows: dict[Sequence, Sequence] = {}

    def step() -> None:
        batch = s.schedule()
        if batch is None:
            assert not live
            return
        slots = [row.sequence.slot for row in batch.rows]
        assert slots == list(range(slots[0], slots[0] + len(slots)))
        ran = {*batch.sequences}
        for own, shadow in shadows.items():
            if batch.phase == "step" and len(ran) > 1 and own in live:
                assert (own in ran) == (shadow in ran)
            assert (own.slot is None) or (shadow.slot is not None)
        s.advance(batch)
        for row in reversed(batch.rows):
            if row.is_last and row.sequence.casts is None and s.append(row.sequence, 1) is not None:
                live.remove(row.sequence)
        for own, shadow in shadows.items():
            assert own.ids[own.num_prompt_tokens :] == shadow.ids[shadow.num_prompt_tokens :]

    for kind, number in acts:
        if kind in ("one", "pair"):
            made = sequence(1 + number, 4) if kind == "one" else pair(1 + number, 1 + number // 2, 4)
            live.append(made)
            if made.shadow is not None:
                shadows[made] = made.shadow
            s.add(made)
        elif kind == "step":
            step()
        elif live and kind == "cancel":
            assert s.remove(live.pop(number % len(live)))
        elif live:
            s.preempt(live[number % len(live)])
        for own, shadow in shadows.items():
            if own not in live:
                assert (own.slot, shadow.slot) == (None, None)
    for _ in range(2000):
        step()
        if not live:
            break
    assert not live
    assert s.num_running == 0


def test_a_shadow_that_waits_stays_behind_those_that_step_when_one_of_them_leaves() -> None:
    s = scheduler(num_slots=4, chunk=2)
    first, second = sequence(2), sequence(2)
    for each in (first, second):
        s.add(each)
        run(s, s.schedule())
    made = pair(8, 2)
    s.add(made)
    for _ in range(3):
        batch = s.schedule()
        s.advance(batch)
        for row in batch.rows:
            if row.sequence in (first, second) and row.is_last:
                s.append(row.sequence, 1)
    assert made.shadow.is_parked
    assert s.remove(first)
    ran = []
    for _ in range(2):
        ran.append(s.schedule())
        s.advance(ran[-1])
    assert {batch.phase: batch.sequences for batch in ran} == {"prompt": [made], "step": [second]}
    assert (second.slot, made.shadow.slot) == (0, 1)
