"""Rows that outlive their sequence, and rows that must make room: with a decoder of which every bit can be told.

What the fake decoder gives is a digest of all rows that a sequence's slot holds, and of which kernel wrote each: the
one for whole tiles of 16 rows of a prompt, the one for what a run leaves over, the one for steps. So an answer tells of
any row that is another's, is missing, or is of other bits. The oracle reads one text from its start without slots.
"""

from __future__ import annotations

import gc
import math
import zlib
from dataclasses import dataclass, replace
from functools import cache
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bundle.layouts.llava import LlavaPrompt
from bundle.layouts.prompt import ImagePrompt
from bundle.prompt import Prompt, Span
from quant.kv.compressing import Compression, Stayed
from runtime.cache_shape import CacheShape
from runtime.filled_prompt import FilledPrompt
from serving.engine.changes import Change, GiveBack, Move
from serving.engine.pace import Pace
from serving.engine.scheduler import Batch, Scheduler
from serving.engine.sequence import RowKey, Sequence
from serving.engine.slots import Slots
from serving.engine.waiting import PRIORITY_STEP_S
from serving.protocol import SamplingParams

EOS, VOCAB = 0, 23
CAPACITY = 144
IMAGE = 99
NUM_IMAGE_TOKENS, NUM_WORD_TOKENS = 20, 5
GRID = 16
SEATS = 3


def contents_of(sequence: Sequence) -> list[RowKey | tuple[RowKey, ...]]:
    """Return what a row is of: its token by content, and where it sees others behind it, all of these."""
    seen = sequence.prompt.prompt.seen
    if seen is None:
        return sequence.keys
    plain = replace(sequence.prompt, prompt=replace(sequence.prompt.prompt, seen=None))
    keys = Sequence("r", plain, sequence.sampling, (EOS,), sequence.image_keys).keys
    of_prompt: list[RowKey | tuple[RowKey, ...]] = []
    for at, (start, end) in enumerate(seen.T.tolist()):
        behind = keys[max(start, at + 1) : end]
        of_prompt.append((keys[at], *behind) if behind else keys[at])
    return [*of_prompt, *sequence.keys[len(of_prompt) :]]


def token_of(rows: list[tuple[RowKey, str]]) -> int:
    """Return the token that follows rows, each by content and the graph that wrote it."""
    return zlib.crc32(repr(rows).encode()) % VOCAB


def written(keys: list[RowKey], start: int, phase: str) -> list[tuple[RowKey, str]]:
    """Return the rows that a run writes of tokens that begin at a place, by content and kernel."""
    if phase == "step":
        return [(key, "step") for key in keys]
    whole = len(keys) - len(keys) % GRID
    tiles = "tile" if start % GRID == 0 else f"tile cut at {start}"
    return [(key, tiles if row < whole else f"rest of {len(keys) - whole}") for row, key in enumerate(keys)]


class FakeDecoder:
    """Rows of slots, by content; checks that whatever is read was written."""

    def __init__(self, num_slots: int) -> None:
        self.slots: list[list[tuple[RowKey, str] | None]] = [[None] * CAPACITY for _ in range(num_slots)]
        self.num_tokens = 0
        self.chosen_from: list[tuple[RowKey, str] | None] = []

    @property
    def num_resident(self) -> int:
        return sum(row is not None for rows in self.slots for row in rows)

    def change(self, changes: tuple[Change, ...]) -> None:
        for each in changes:
            if isinstance(each, Move):
                (num_rows,) = each.rows
                assert each.source != each.target
                self.slots[each.target][:num_rows] = self.slots[each.source][:num_rows]
            else:
                assert isinstance(each, GiveBack)
                self.slots[each.slot][each.first_row :] = [None] * (CAPACITY - each.first_row)

    def run(self, batch: Batch) -> list[int]:
        """Write the batch's rows and return the token that follows each."""
        tokens = []
        for row in batch.rows:
            held, place = self.slots[row.sequence.slot], row.sequence.rows[0]
            assert row.start == place or row.sequence.is_compressed
            assert row.end - row.start > 1 or batch.phase == "step" or row.sequence.num_prompt_tokens == 1
            count = row.end - row.start
            seen = row.sequence.prompt.prompt.seen
            assert seen is None or batch.phase == "step" or seen[1][row.start : row.end].max() <= row.end
            held[place : place + count] = written(
                contents_of(row.sequence)[row.start : row.end], row.start, batch.phase
            )
            self.num_tokens += count
            tokens.append(token_of(held[: place + count]))
        return tokens

    def spoil(self, sequence: Sequence) -> None:
        """Begin to choose among a prompt's rows: what its slot holds is nothing to be read for now."""
        held, count = self.slots[sequence.slot], sequence.num_prompt_tokens
        self.chosen_from = held[:count]
        held[:count] = [(-1, "spoilt")] * count

    def compress(self, sequence: Sequence, num_kept: int) -> None:
        """Leave the last rows of a prompt, which was begun to be chosen from."""
        self.slots[sequence.slot][:num_kept] = self.chosen_from[-num_kept:]


class AnyPace(Pace):
    """Chunks of whatever size comes next, before or after whatever step."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes, self._at = sizes, count()

    def chunk_tokens(self, *, beside_answers: bool) -> int:
        return self._sizes[next(self._at) % len(self._sizes)]

    def has_room_for(self, num_tokens: int) -> bool:
        return self.chunk_tokens(beside_answers=True) % 2 == 0


@cache
def layout_of(looks_ahead: str) -> ImagePrompt:
    class Layout(LlavaPrompt):
        pass

    Layout.looks_ahead = looks_ahead
    return Layout(image_token="<image>", image_token_id=IMAGE, tokens_per_tile=1)


@dataclass(frozen=True)
class Asked:
    """A prompt: words of a small alphabet, and images by their number; of its rows the last `num_kept` stay."""

    parts: tuple[int, ...]
    max_tokens: int = 4
    priority: int = 0
    num_kept: int | None = None
    policy: str = "knorm"
    looks_ahead: str = "nowhere"

    def sequence(self) -> Sequence:
        ids: list[int] = []
        spans: list[Span] = []
        for part in self.parts:
            if part >= IMAGE:
                spans.append(Span(len(ids), len(ids) + NUM_IMAGE_TOKENS, len(spans), 0))
                ids += [IMAGE] * NUM_IMAGE_TOKENS
            else:
                ids += [part] * NUM_WORD_TOKENS
        seen = layout_of(self.looks_ahead).seen(np.array(ids), spans)
        prompt = Prompt(np.array(ids), tuple(spans), np.arange(len(ids)), len(ids), len(spans), seen)
        filled = FilledPrompt.of(prompt, [np.zeros((NUM_IMAGE_TOKENS, 2), np.float32)] * len(spans))
        keys = [bytes([part]) for part in self.parts if part >= IMAGE]
        sampling = SamplingParams(max_tokens=self.max_tokens)
        compression = None
        if self.num_kept is not None and self.num_kept < len(ids):
            compression = Compression(self.policy, self.num_kept)
        return Sequence("r", filled, sampling, (EOS,), keys, priority=self.priority, compression=compression)

    def answer(self) -> list[int]:
        """Return what follows the prompt, read alone and from its start."""
        sequence = self.sequence()
        rows = written(contents_of(sequence), 0, "prompt")
        answer = [token_of(rows)]
        if sequence.compression is not None:
            rows = rows[-sequence.compression.num_kept :]
        while answer[-1] != EOS and len(answer) < self.max_tokens and len(rows) < CAPACITY:
            rows.append((answer[-1], "step"))
            answer.append(token_of(rows))
        return answer


class Server:
    """A scheduler and the fake decoder; remembers what each sequence said, and that each ended once."""

    def __init__(self, shape: CacheShape, pace: Pace, *, keeps_prefixes: bool = True, is_checked: bool = True) -> None:
        self.is_checked = is_checked
        self.scheduler = Scheduler(shape, pace, keeps_prefixes=keeps_prefixes)
        self.decoder = FakeDecoder(shape.num_slots + shape.num_spare_slots)
        self.live: dict[Sequence, Asked] = {}
        self.ended: list[Sequence] = []

    def add(self, asked: Asked) -> Sequence:
        sequence = asked.sequence()
        self.live[sequence] = asked
        self.scheduler.add(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        asked = self.live.pop(sequence)
        assert self.scheduler.remove(sequence)
        said = sequence.ids[sequence.num_prompt_tokens :]
        assert said == asked.answer()[: len(said)]
        self.ended.append(sequence)

    def compress(self) -> None:
        """Choose among a prompt's rows in two pieces."""
        sequence = self.scheduler.compressing
        if sequence is None:
            return
        if sequence.compressing is None:
            self.scheduler.begin_compressing(sequence)
            self.decoder.change(self.scheduler.take_changes())
            self.decoder.spoil(sequence)
            sequence.compressing = object()
            return
        self.decoder.change(self.scheduler.take_changes())
        num_kept = sequence.compression.num_kept
        self.decoder.compress(sequence, num_kept)
        self.scheduler.compressed(sequence, Stayed((num_kept,), num_kept))

    def step(self) -> bool:
        self.compress()
        batch = self.scheduler.schedule()
        self.decoder.change(self.scheduler.take_changes())
        if batch is None:
            return False
        self.check_places(batch)
        tokens = self.decoder.run(batch)
        self.scheduler.advance(batch)
        for row, token in zip(batch.rows, tokens, strict=True):
            if row.is_last and self.scheduler.append(row.sequence, token) is not None:
                asked = self.live.pop(row.sequence)
                assert not self.is_checked or row.sequence.ids[row.sequence.num_prompt_tokens :] == asked.answer()
                self.ended.append(row.sequence)
        budget = self.scheduler.shape.budget_rows
        assert budget is None or not self.is_checked or self.decoder.num_resident <= budget
        return True

    def check_places(self, batch: Batch) -> None:
        slots = [sequence.slot for sequence in self.live if sequence.slot is not None]
        assert len(slots) == len(set(slots)) == self.scheduler.num_running
        assert all(slot < self.scheduler.shape.num_slots for slot in slots)
        assert set(batch.sequences) <= set(self.live)
        held = [each for each in self.scheduler._slots._held if isinstance(each, Sequence)]
        assert [sequence.slot for sequence in held] == sorted(slots)
        if len(batch.rows) > 1:
            assert [row.sequence.slot for row in batch.rows] == list(range(len(batch.rows)))

    def until_idle(self) -> None:
        while self.step() or self.scheduler.compressing:
            pass
        assert not self.live
        assert not self.scheduler.has_work
        assert self.scheduler.num_cached_rows == 0

    def ask(self, asked: Asked) -> Sequence:
        sequence = self.add(asked)
        self.until_idle()
        return sequence


def server(num_seats: int = SEATS, num_spare: int = 2, budget: int | None = None, *, is_checked: bool = True) -> Server:
    return Server(CacheShape(num_seats, CAPACITY, 1, 0, num_spare, budget), Pace(48, math.inf), is_checked=is_checked)


PARTS = st.lists(st.sampled_from([1, 2, 3, IMAGE, IMAGE + 1]), min_size=1, max_size=7).map(tuple)
KEPT = st.one_of(st.none(), st.integers(1, 60))
SEES = st.sampled_from(["nowhere", "nowhere", "images", "text", "prompt"])
ASKED = st.builds(Asked, PARTS, st.integers(1, 4), st.integers(-1, 1), KEPT, st.sampled_from(["knorm", "snapkv"]), SEES)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), ASKED),
        st.tuples(st.just("add"), ASKED),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("fail"), st.integers(0, 9)),
        st.tuples(st.just("preempt"), st.integers(0, 9)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=60,
)
SHAPES = st.builds(
    lambda seats, spare, budget, copies: CacheShape(seats, CAPACITY, 1, 0, spare, budget, copies),
    st.integers(1, 4),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(CAPACITY, 3 * CAPACITY)),
    st.booleans(),
)


@given(ACTIONS, SHAPES, st.lists(st.integers(32, 90), min_size=1, max_size=5), st.booleans())
@hypothesis_settings(max_examples=150)
def test_whatever_happens_every_answer_is_what_it_is_alone_and_memory_stays_within_its_limit(
    actions, shape, sizes, keeps_prefixes
) -> None:
    here = Server(shape, AnyPace(sizes), keeps_prefixes=keeps_prefixes)
    num_added = 0
    for kind, value in actions:
        running = [sequence for sequence in here.live if sequence.slot is not None]
        if kind == "add":
            here.add(value)
            num_added += 1
        elif kind == "step":
            for _ in range(value):
                here.step()
        elif kind == "cancel" and here.live:
            here.cancel(list(here.live)[value % len(here.live)])
        elif kind == "fail" and running:
            failed = running[value % len(running)]
            del here.live[failed]
            assert here.scheduler.remove(failed, keeps=False)
            here.ended.append(failed)
        elif kind == "preempt" and running:
            assert here.scheduler.preempt(running[value % len(running)])
        elif kind == "clear":
            here.scheduler.clear()
            assert here.scheduler.num_kept_rows == 0
    here.until_idle()
    assert len(here.ended) == len(set(here.ended)) == num_added
    if not keeps_prefixes:
        assert here.scheduler.counts.prefix_hits == here.scheduler.num_kept_rows == 0


def test_a_prompt_that_is_here_is_run_but_for_its_last_tokens() -> None:
    here = server()
    for asked, cached in ((Asked((1, 2, IMAGE, 3, 1, 2)), 32), (Asked((2, 1, *[IMAGE] * 2, 3)), 48)):
        first, second = here.ask(asked), here.ask(asked)
        assert (first.cached_tokens, second.cached_tokens) == (0, cached)
        assert first.num_prompt_tokens - GRID - 2 < cached <= first.num_prompt_tokens - 2
    assert (here.scheduler.counts.prefix_queries, here.scheduler.counts.prefix_hits) == (2 * 45 + 2 * 55, 32 + 48)


@pytest.mark.parametrize(("num_tokens", "cached"), [(16, 0), (17, 0), (18, 16), (33, 16), (34, 32)])
def test_never_a_single_token_of_a_prompt_is_run(num_tokens: int, cached: int) -> None:
    slots = Slots(1)
    for expected in (0, cached):
        sequence = Sequence("r", FilledPrompt.of_ids(np.arange(num_tokens)), SamplingParams(), ())
        slots.seat(sequence)
        assert sequence.cached_tokens == expected
        sequence.advance(num_tokens - expected)
        slots.free(sequence)


def test_the_next_turn_over_an_image_reads_the_last_answer_and_the_new_turn() -> None:
    here = server()
    first = here.ask(Asked((1, 2, IMAGE, 3, IMAGE, 2), max_tokens=4))
    read_before = here.decoder.num_tokens
    second = here.ask(Asked((1, 2, IMAGE, 3, IMAGE, 2, 3, 3), max_tokens=1))
    assert (first.num_prompt_tokens, second.cached_tokens) == (60, 48)
    assert here.decoder.num_tokens - read_before == second.num_prompt_tokens - 48


@pytest.mark.parametrize("other", [IMAGE + 1, 3])
def test_another_image_of_equal_size_shares_no_row_with_the_first(other: int) -> None:
    here = server()
    here.ask(Asked((1, 2, 3, 2, IMAGE, 3)))
    assert here.ask(Asked((1, 2, 3, 2, IMAGE, 1))).cached_tokens == 32
    assert here.ask(Asked((1, 2, 3, 2, other, 3, 3, 3, 3))).cached_tokens == 16


def test_an_image_that_sees_itself_is_shared_whole_and_what_stands_behind_it_as_far_as_it_is_the_same() -> None:
    here = server()
    first = (1, 2, IMAGE, 3, 1, 2)
    here.ask(Asked(first, looks_ahead="images"))
    assert here.ask(Asked((*first, 3), looks_ahead="images")).cached_tokens == 32
    assert here.ask(Asked((1, 2, IMAGE + 1, 3, 1, 2), looks_ahead="images")).cached_tokens == 0
    assert here.ask(Asked((1, 2, IMAGE, IMAGE), looks_ahead="images")).cached_tokens == 16


def test_a_prompt_that_sees_all_of_itself_is_shared_with_none_but_its_like() -> None:
    here = server()
    asked = Asked((1, 2, IMAGE, 3, 1, 2), looks_ahead="prompt")
    here.ask(asked)
    assert here.ask(replace(asked, parts=(*asked.parts, 3))).cached_tokens == 0
    assert here.ask(replace(asked, parts=asked.parts[:-1])).cached_tokens == 0
    assert here.ask(replace(asked, looks_ahead="nowhere")).cached_tokens == 0
    assert here.ask(asked).cached_tokens == 32


def test_a_running_sequence_lends_its_prompt_to_another_and_goes_on_where_both_fit() -> None:
    here = server(budget=3 * CAPACITY)
    asked = next(
        each
        for each in (Asked((1, 2, IMAGE, 3, word), max_tokens=9) for word in range(1, 20))
        if len(each.answer()) == 9
    )
    first = here.add(asked)
    while not first.num_output_tokens:
        here.step()
    second = here.add(replace(asked, max_tokens=2))
    here.until_idle()
    assert second.cached_tokens == 32
    assert here.scheduler.counts.preemptions == 0


def test_two_conversations_in_turns_keep_their_rows_with_one_seat() -> None:
    here = server(num_seats=1, num_spare=2)
    parts = [(1, 2, IMAGE, 3), (2, 1, IMAGE + 1, 3)]
    for turn in range(3):
        for number, told in enumerate(parts):
            asked = here.ask(Asked(told, max_tokens=1))
            assert asked.cached_tokens == (0 if turn == 0 else 32)
            parts[number] = (*told, 1)


def test_where_copies_are_dear_a_kept_prompt_serves_who_gets_its_seat() -> None:
    here = Server(CacheShape(2, CAPACITY, 1, has_cheap_copies=False), Pace(48, math.inf))
    here.ask(Asked((1, 2, IMAGE, 3), max_tokens=1))
    asked = Asked((1, 2, IMAGE, 3, 1), max_tokens=9)
    first, second = here.add(asked), here.add(asked)
    here.until_idle()
    assert (first.cached_tokens, second.cached_tokens) == (32, 0)


def test_states_that_cannot_be_cut_are_never_shared() -> None:
    here = Server(CacheShape(2, CAPACITY, 1, 8, 2), Pace(48, math.inf))
    asked = Asked((1, 2, IMAGE, 3, 1), max_tokens=9)
    both = here.add(asked), here.add(asked)
    here.until_idle()
    assert [each.cached_tokens for each in (*both, here.ask(asked))] == [0, 0, 0]
    assert here.scheduler.num_kept_rows == 0


def test_what_was_not_needed_for_longest_goes_first() -> None:
    here = server(num_seats=1, num_spare=1)
    old, newer, newest = (Asked((number, *[3] * 7), max_tokens=1) for number in (1, 2, 4))
    for asked in (old, newer, old, newest):
        here.ask(asked)
    assert here.ask(old).cached_tokens == 32
    assert here.ask(newer).cached_tokens == 0


def test_what_a_longer_prompt_holds_as_well_is_kept_once() -> None:
    here = server()
    here.ask(Asked((1, 2, 3), max_tokens=1))
    here.ask(Asked((1, 2, 3, 1, 2, 3), max_tokens=1))
    here.ask(Asked((1, 2, 3, 1), max_tokens=1))
    assert here.scheduler.num_kept_rows == 6 * NUM_WORD_TOKENS


def test_kept_rows_give_way_before_a_running_sequence_does() -> None:
    here = server(num_seats=2, num_spare=2, budget=CAPACITY)
    for first in (1, 2, 3):
        here.ask(Asked((first, *[3] * 7), max_tokens=1))
    assert here.scheduler.num_kept_rows == 3 * 40
    here.ask(Asked((4, *[2] * 15), max_tokens=8))
    assert here.scheduler.counts.preemptions == 0
    assert 0 < here.scheduler.num_kept_rows <= CAPACITY
    here.scheduler.clear()
    here.step()
    assert here.decoder.num_resident == 0


def test_under_pressure_the_last_one_gives_way_and_says_the_same() -> None:
    here = server(num_seats=2, num_spare=0, budget=CAPACITY)
    asked = [Asked((number, *[3] * 9), max_tokens=40) for number in range(1, 60)]
    long = sorted(asked, key=lambda each: -len(each.answer()))[:2]
    sequences = [here.add(each) for each in long]
    assert sum(len(each.answer()) for each in long) + 2 * 50 > CAPACITY
    here.until_idle()
    assert here.scheduler.counts.preemptions > 0
    assert here.ended[0] is sequences[0]


def test_a_waiting_sequence_begins_where_its_rows_fit_and_alone_in_any_case() -> None:
    here = server(num_seats=2, num_spare=0, budget=CAPACITY)
    first, second = here.add(Asked((1,) * 20, max_tokens=3)), here.add(Asked((2,) * 20, max_tokens=3))
    here.step()
    assert (first.slot, second.slot) == (0, None)
    here.until_idle()
    assert here.scheduler.counts.preemptions == 0


def test_a_lower_priority_begins_earlier_but_nobody_waits_for_ever() -> None:
    here = server(num_seats=1)
    running = here.add(Asked((1, 1), max_tokens=1))
    waiting = {name: Asked((2, 2), 1, priority).sequence() for name, priority in (("low", 1), ("high", -1), ("mid", 0))}
    waiting["old"] = Asked((3, 3), 1, 1).sequence()
    for name, sequence in waiting.items():
        sequence.submitted_s = 1000.0 - (3 * PRIORITY_STEP_S if name == "old" else 0)
        here.scheduler.add(sequence)
        here.live[sequence] = Asked((2, 2) if name != "old" else (3, 3), 1)
    here.until_idle()
    assert here.ended == [running, *(waiting[name] for name in ("old", "high", "mid", "low"))]


def test_10000_requests_leave_nothing_behind() -> None:
    here, rng = server(budget=3 * CAPACITY, is_checked=False), np.random.default_rng(0)

    def serve(num_requests: int) -> None:
        for _ in range(num_requests):
            here.add(Asked(tuple(rng.choice([1, 2, 3, IMAGE, IMAGE + 1], size=rng.integers(1, 7)).tolist()), 3))
            if len(here.live) > 6:
                last = next(reversed(here.live))
                del here.live[last]
                assert here.scheduler.remove(last)
            here.step()
        here.until_idle()
        here.ended.clear()

    serve(1000)
    gc.collect()
    num_objects = len(gc.get_objects())
    serve(9000)
    gc.collect()
    assert len(gc.get_objects()) < num_objects + 500
    assert here.scheduler.num_running == 0
    assert 0 < here.scheduler.num_kept_rows <= 5 * CAPACITY


def test_rows_that_were_dropped_are_free_after_a_thousand_requests() -> None:
    """Of a memory of three contexts, whatever was asked before, three prompts of 120 rows run at once."""
    here, numbers = server(budget=3 * CAPACITY), np.random.default_rng(3)
    for _ in range(1000):
        parts = tuple(numbers.choice([1, 2, 3, IMAGE, IMAGE + 1], numbers.integers(1, 7)).tolist())
        kept = int(numbers.integers(1, 60))
        here.add(Asked(parts, int(numbers.integers(1, 5)), 0, kept, ("knorm", "snapkv")[kept % 2]))
        for _ in range(numbers.integers(1, 5)):
            here.step()
    here.until_idle()
    assert len(here.ended) == 1000
    assert here.scheduler.num_cached_rows == 0
    num_preemptions = here.scheduler.counts.preemptions
    for at in range(3):
        here.add(Asked((IMAGE + 2 + at,) * 6, 20))
    most_running = 0
    while here.step():
        most_running = max(most_running, here.scheduler.num_running)
    assert most_running == 3
    assert here.scheduler.counts.preemptions == num_preemptions


def test_a_prompt_is_set_aside_before_its_rows_are_chosen_where_there_is_room() -> None:
    asked = Asked((1, 2, IMAGE, 3, 1, 2), 4, 0, 10)
    for budget, num_spare, cached in (
        (None, 2, 32),
        (None, 0, 0),
        (3 * CAPACITY, 2, 32),
        (CAPACITY, 2, 32),
        (60, 2, 0),
    ):
        here = server(num_spare=num_spare, budget=budget)
        here.ask(asked)
        assert here.ask(Asked(asked.parts, 4)).cached_tokens == cached
