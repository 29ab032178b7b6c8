"""Rows of a prompt chosen after it was read: positions, batches, prefixes and memory stay what they have to be.

The reference is transformers' Llama with the same weights, in one pass over the whole text: what a head dropped is
masked there for all later tokens of that head, and positions stay as they were.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bundle.prompt import Prompt, Span
from quant.kv.compressing import Compression
from quant.kv.policy import Budget, LayerRows
from quant.kv.table import POLICIES, load_policy
from runtime.decoder import Decoder
from runtime.filled_prompt import FilledPrompt
from serving.engine.pace import Pace
from serving.engine.runner import Runner
from serving.engine.sampling.sampler import Sampler
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.protocol import SamplingParams

NUM_PROMPT = 75
NUM_ANSWER = 8
MAX_POSITIONS = 160
GROUPS = (0, 1)
ALL = sorted(POLICIES)
MERGING = [name for name in ALL if name.startswith("look-m")]
PROMPT = np.random.default_rng(11).integers(6, 60, NUM_PROMPT)


@pytest.fixture(scope="module")
def model(tiny_decoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two layers, each of a length group of its own."""
    config = dataclasses.replace(tiny_decoder.CONFIG, max_positions=MAX_POSITIONS, layer_groups=GROUPS)
    return tiny_decoder.write_tiny_model(tmp_path_factory.mktemp("two-groups"), config, "contrib")


def filled(ids: np.ndarray, start: int = 20, end: int = 50) -> FilledPrompt:
    """Return a prompt some of whose tokens are said to be an image's, without other features than their own."""
    spans = (Span(start, end, 0, 0),)
    return FilledPrompt(Prompt(ids, spans, np.arange(len(ids)), len(ids), 1), ())


class Drive:
    """The engine's step without its thread: compress, schedule, run, sample; remembers logits and what was chosen."""

    def __init__(self, model: Any, settings: Any, num_slots: int = 4, chunk_tokens: int = 32, **shape: Any) -> None:
        settings = settings.model_copy(update={"max_sequences": num_slots})
        of_cache = dataclasses.replace(model.shape(settings), **shape)
        self.runner = Runner(Decoder(model.graphs(settings), of_cache))
        self.scheduler = Scheduler(of_cache, Pace(chunk_tokens, math.inf))
        self.num_groups = model.bundle.manifest.num_length_groups
        self.logits: dict[Sequence, list[np.ndarray]] = {}

    def add(self, ids: np.ndarray, policy: str | None = None, num_kept: int = 20, **sampling: Any) -> Sequence:
        compression = None if policy is None else Compression(policy, num_kept)
        sequence = Sequence(
            "r", filled(ids), SamplingParams(**sampling), (), (b"image",), self.num_groups, compression=compression
        )
        self.scheduler.add(sequence)
        self.logits[sequence] = []
        return sequence

    def compress(self) -> None:
        while (sequence := self.scheduler.compressing) is not None:
            if sequence.compressing is None:
                self.scheduler.begin_compressing(sequence)
            self.runner.change(self.scheduler.take_changes())
            if (stayed := self.runner.compress(sequence, 0.0)) is not None:  # a piece at a time
                self.scheduler.compressed(sequence, stayed)

    def step(self) -> bool:
        self.compress()
        batch = self.scheduler.schedule()
        if batch is None:
            return False
        self.runner.change(self.scheduler.take_changes())
        logits = self.runner.run(batch).rows().copy()
        self.scheduler.advance(batch)
        for row, of_row in zip(batch.rows, logits, strict=True):
            if row.is_last:
                self.logits[row.sequence].append(of_row)
                [choice] = Sampler().choose(of_row[None], [row.sequence.sampling_state])
                self.scheduler.append(row.sequence, choice.token_id)
        return True

    def until(self, sequence: Sequence, num_output: int) -> Sequence:
        while sequence.num_output_tokens < num_output and self.step():
            pass
        return sequence

    def rows(self, sequence: Sequence) -> list[np.ndarray]:
        """Return a copy of all rows that a sequence's slot holds, of every state."""
        states = self.runner._decoder.states
        held = sequence.rows
        return [states.rows_as_float(state, sequence.slot, held[state.group]).copy() for state in states.states]

    def settle(self, sequence: Sequence) -> Sequence:
        """Run until a sequence's rows are chosen and before its next step."""
        self.until(sequence, 1)
        self.compress()
        self.runner.change(self.scheduler.take_changes())
        return sequence


def chosen_rows(model: Any, settings: Any, policy: str, num_kept: int) -> list[np.ndarray]:
    """Return [K, n] rows of each layer that a policy keeps of `PROMPT`, from one uncut run of the graph."""
    runner = model.runner(settings)
    names = ("last_queries.0", "last_queries.1")
    run = filled(PROMPT).run(0, NUM_PROMPT, [0, 0], [NUM_PROMPT - 1])
    _, found = runner._decoder.run_with(names, "prompt", 0, [run])
    sequence = Sequence("r", filled(PROMPT), SamplingParams(), (), (b"image",), 2)
    states = {state.input: state for state in runner._decoder.states.states}
    layers = []
    for at, name in enumerate(names):
        keys, values = (
            runner._decoder.states.rows_as_float(states[f"past_key_values.{at}.{part}"], 0, NUM_PROMPT)
            for part in ("key", "value")
        )
        queries = found[name][0].reshape(-1, 6, 8).transpose(1, 0, 2)
        if not POLICIES[policy].needs_queries:
            queries = queries[:, :0]
        layers.append(LayerRows(at, keys, values, queries, sequence.is_image, sequence.content_seed))
    made = load_policy(policy)(Budget(NUM_PROMPT, num_kept, layers[0].queries.shape[1]))
    counts = made.counts([made.weight(layer) if made.weighs_layers else 1.0 for layer in layers])
    return [made.kept(layer, count) for layer, count in zip(layers, counts, strict=True)]


@pytest.mark.parametrize("policy", [name for name in ALL if name not in MERGING])
def test_dropping_rows_is_masking_them_for_each_head_and_moves_no_position(model, settings, llama, policy: str) -> None:
    drive = Drive(model, settings)
    neighbour, sequence = drive.add(PROMPT[::-1].copy()), drive.add(PROMPT, policy)
    drive.until(sequence, NUM_ANSWER)
    kept = chosen_rows(model, settings, policy, 20)
    assert sequence.num_kept_rows == round(np.mean([rows.shape[1] for rows in kept]))
    hidden = [[np.setdiff1d(np.arange(NUM_PROMPT), rows) for rows in of_layer] for of_layer in kept]
    expected = llama.masked_logits(model, sequence.ids, hidden, NUM_PROMPT)
    found = np.stack(drive.logits[sequence])
    np.testing.assert_allclose(found, expected[NUM_PROMPT - 1 : NUM_PROMPT - 1 + len(found)], rtol=0, atol=2e-4)
    whole = llama.masked_logits(model, sequence.ids, [[[]] * 2] * 2, NUM_PROMPT)
    assert np.abs(expected - whole)[NUM_PROMPT:].max() > 0.01  # they did matter
    assert sequence.next_position == len(sequence.ids)
    beside = np.stack(drive.logits[neighbour])
    wanted = llama.masked_logits(model, neighbour.ids, [[[]] * 2] * 2, NUM_PROMPT)
    np.testing.assert_allclose(beside, wanted[NUM_PROMPT - 1 :][: len(beside)], rtol=0, atol=2e-4)


@pytest.mark.parametrize("policy", ALL)
def test_rows_are_as_many_as_the_budget_says_in_every_group(model, settings, policy: str) -> None:
    drive = Drive(model, settings)
    sequence = drive.settle(drive.add(PROMPT, policy))
    if POLICIES[policy].has_layer_budgets:
        assert sequence.rows[0] != sequence.rows[1]
        assert sum(sequence.rows) <= 40
    else:
        assert sequence.rows == [20, 20]


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("chunk_tokens", [32, 48, 160])
def test_rows_are_the_same_bits_however_a_prompt_was_cut_and_whatever_runs_beside_it(
    model, settings, policy: str, chunk_tokens: int
) -> None:
    alone = Drive(model, settings, chunk_tokens=64)
    expected = alone.rows(alone.settle(alone.add(PROMPT, policy)))
    drive = Drive(model, settings, chunk_tokens=chunk_tokens)
    for others in (None, "snapkv"):
        drive.until(drive.add(PROMPT[::-1].copy(), others, max_tokens=40), 2)
    sequence = drive.settle(drive.add(PROMPT, policy))
    for found, wanted in zip(drive.rows(sequence), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("policy", ["snapkv", "look-m", "vl-cache", "knorm"])
@pytest.mark.parametrize("first", [None, "look-m"])
def test_a_prompt_that_was_read_before_is_found_uncompressed_and_gives_the_same_bits(
    model, settings, policy: str, first: str | None
) -> None:
    alone = Drive(model, settings)
    expected = alone.rows(alone.settle(alone.add(PROMPT, policy)))
    drive = Drive(model, settings, num_spare_slots=2)
    drive.until(drive.add(PROMPT, first, max_tokens=4), 4)
    sequence = drive.settle(drive.add(PROMPT, policy))
    assert sequence.cached_tokens == (32 if POLICIES[policy].needs_queries else 64)
    for found, wanted in zip(drive.rows(sequence), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("num_spare", [0, 2])
def test_rows_that_were_chosen_or_merged_are_no_prefix_of_anybody(model, settings, policy: str, num_spare: int) -> None:
    alone = Drive(model, settings)
    expected = np.stack(alone.logits[alone.until(alone.add(PROMPT), NUM_ANSWER)])
    drive = Drive(model, settings, num_spare_slots=num_spare)
    running = drive.until(drive.add(PROMPT, policy, max_tokens=30), 2)
    for is_over in (False, True):
        if is_over:
            drive.until(running, 30)
        after = drive.until(drive.add(PROMPT, max_tokens=NUM_ANSWER), NUM_ANSWER)
        first = after.cached_tokens == 0
        assert first == (num_spare == 0 and not is_over)
        found = np.stack(drive.logits[after])
        # The first logits are of the prompt alone; later steps ran beside others, which orders sums differently.
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("policy", ["snapkv", "look-m", "pyramidkv", "random"])
@pytest.mark.parametrize("preempted_after", [1, 5])
def test_a_compressed_sequence_that_was_preempted_holds_the_same_rows_again(
    model, settings, policy: str, preempted_after: int
) -> None:
    answers = []
    for is_preempted in (False, True):
        drive = Drive(model, settings, num_slots=2)
        neighbour, sequence = drive.add(PROMPT[::-1].copy(), max_tokens=30), drive.add(PROMPT, policy)
        drive.until(sequence, preempted_after)
        if is_preempted:
            assert drive.scheduler.preempt(sequence)
            assert not sequence.is_compressed
            for _ in range(2):
                drive.step()
        drive.until(sequence, NUM_ANSWER)
        answers.append((sequence.ids[:], drive.rows(sequence)))
        drive.until(neighbour, 30)
    assert answers[0][0] == answers[1][0]
    num_chosen = [len(rows[0]) - NUM_ANSWER + 1 for rows in answers[0][1]]
    for first, second, count in zip(answers[0][1], answers[1][1], num_chosen, strict=True):
        np.testing.assert_array_equal(first[:, :count], second[:, :count])
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)  # the answer was read in one run, not by steps


@pytest.mark.parametrize("keeps", [True, False])
def test_what_was_begun_to_be_chosen_from_is_found_by_nobody(model, settings, keeps: bool) -> None:
    expected = np.stack((alone := Drive(model, settings)).logits[alone.until(alone.add(PROMPT), 3)])
    drive = Drive(model, settings)
    sequence = drive.until(drive.add(PROMPT, "look-m"), 1)
    drive.runner.change(drive.scheduler.take_changes())
    assert drive.runner.compress(sequence, 0.0) is None  # the first layer is merged, the second is as it was
    assert drive.scheduler.remove(sequence, keeps=keeps)
    after = drive.until(drive.add(PROMPT), 3)
    assert after.cached_tokens == 0
    np.testing.assert_array_equal(np.stack(drive.logits[after]), expected)


def test_preempted_while_its_rows_are_chosen_it_begins_anew(model, settings) -> None:
    alone = Drive(model, settings)
    expected = alone.rows(alone.settle(alone.add(PROMPT, "snapkv")))
    drive = Drive(model, settings)
    sequence = drive.until(drive.add(PROMPT, "snapkv"), 1)
    drive.runner.change(drive.scheduler.take_changes())
    assert drive.runner.compress(sequence, 0.0) is None
    assert not sequence.prompt_rows
    assert drive.scheduler.preempt(sequence)
    drive.until(sequence, 2)
    found = [rows[:, :20] for rows in drive.rows(sequence)]
    for rows, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rows, wanted)


def test_a_compressed_sequence_may_grow_longer_than_a_slot_and_be_read_again(model, settings) -> None:
    drive = Drive(model, settings)
    sequence = drive.until(drive.add(PROMPT, "snapkv", max_tokens=135), 120)
    assert len(sequence.ids) > MAX_POSITIONS
    assert drive.scheduler.preempt(sequence)
    drive.until(sequence, 130)
    assert sequence.num_output_tokens == 130


def test_rows_that_were_dropped_make_room_for_others(model, settings) -> None:
    """Three prompts of 75 tokens within 130 rows: 75 of one and 20 of each that was compressed."""
    for policy, most_running in ((None, 1), ("snapkv", 3)):
        drive = Drive(model, settings, budget_rows=160)
        for _ in range(3):
            drive.add(PROMPT, policy, max_tokens=20)
        running = 0
        while drive.step():
            running = max(running, drive.scheduler.num_running)
            assert drive.scheduler.num_cached_rows <= 160
        assert running == most_running
        assert drive.scheduler.counts.preemptions == 0


def test_memory_of_rows_that_were_dropped_is_given_back(model, settings) -> None:
    drive = Drive(model, settings)
    sequence = drive.until(drive.add(PROMPT, "pyramidkv"), 1)
    while (stayed := drive.runner.compress(sequence, math.inf)) is None:
        pass
    drive.scheduler.compressed(sequence, stayed)
    given = {(each.group, each.first_row) for each in drive.scheduler.take_changes() if hasattr(each, "first_row")}
    assert given == {(0, sequence.rows[0]), (1, sequence.rows[1])}
    assert drive.scheduler._slots._written[sequence.slot] == max(sequence.rows)


@pytest.mark.parametrize("policy", [name for name in ALL if name != "vl-cache"])
def test_keeping_all_rows_changes_no_bit(model, settings, policy: str) -> None:
    alone = Drive(model, settings)
    expected = alone.rows(alone.settle(alone.add(PROMPT)))
    drive = Drive(model, settings)
    found = drive.rows(drive.settle(drive.add(PROMPT, policy, NUM_PROMPT)))
    for rows, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rows, wanted)


@hypothesis_settings(max_examples=25)
@given(
    policies=st.lists(st.sampled_from([None, *ALL]), min_size=2, max_size=4),
    lengths=st.lists(st.integers(3, 100), min_size=4, max_size=4),
    share=st.floats(0.05, 0.95),
)
def test_a_batch_says_what_each_says_alone(model, settings, policies, lengths, share) -> None:
    prompts = [np.random.default_rng(at).integers(6, 60, length) for at, length in enumerate(lengths)]
    asked = [(ids, policy, max(int(len(ids) * share), 1)) for ids, policy in zip(prompts, policies, strict=False)]
    expected = []
    for ids, policy, num_kept in asked:
        alone = Drive(model, settings)
        expected.append(np.stack(alone.logits[alone.until(alone.add(ids, policy, num_kept), 5)]))
    drive = Drive(model, settings)
    sequences = [drive.add(ids, policy, num_kept, max_tokens=5) for ids, policy, num_kept in asked]
    while drive.step():
        pass
    for sequence, wanted in zip(sequences, expected, strict=True):
        found = np.stack(drive.logits[sequence])
        agreed = 0
        while agreed < len(found) and np.abs(found[agreed] - wanted[agreed]).max() < 5e-5:
            agreed += 1
        # They part only where the choice of a token was a tie within rounding.
        assert agreed == len(found) or np.diff(np.sort(wanted[agreed - 1])[-2:])[0] < 1e-4


def codes_of(drive: Drive, sequence: Sequence) -> list[np.ndarray]:
    """Return a copy of what a sequence's slot stores, of every state."""
    buffers = drive.runner._decoder.states
    return [
        buffers._buffers[state.input].read()[sequence.slot][:, : sequence.rows[state.group]].copy()
        for state in buffers.states
    ]


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("policy", ["snapkv", "pyramidkv", "knorm", "look-m"])
def test_over_a_cache_of_codes_the_codes_that_stay_are_those_that_were(
    model, settings, tmp_path, scheme: str, policy: str
) -> None:
    coded = model.with_coded_cache(tmp_path / scheme, scheme)
    whole, drive = Drive(coded, settings), Drive(coded, settings)
    before = codes_of(whole, whole.settle(whole.add(PROMPT)))
    sequence = drive.settle(drive.add(PROMPT, policy))
    after = codes_of(drive, sequence)
    kept = chosen_rows(coded, settings, policy, 20)
    for at, (stored, found) in enumerate(zip(before, after, strict=True)):
        wanted = np.take_along_axis(stored, kept[at // 2][..., None], axis=1)
        if policy not in MERGING:
            np.testing.assert_array_equal(found, wanted)
        else:
            assert (found == wanted).all(axis=-1).any()  # rows into which nothing was merged
            assert (found != wanted).any()
    assert np.isfinite(np.stack(drive.logits[drive.until(sequence, 6)])).all()
