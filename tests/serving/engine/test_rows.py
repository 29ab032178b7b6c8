"""Rows, positions and tokens are three things: what is evicted, preempted or grouped changes no other of them.

The reference is transformers' Llama with the same weights, in one pass over the whole text without any cache: rows that
were dropped are masked there for all later tokens, and positions stay as they were.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bundle.prompt import Prompt
from runtime.filled_prompt import FilledPrompt
from runtime.fused_prefix import StoredRows
from serving.engine.pace import Pace
from serving.engine.sampling.sampler import Sampler
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.protocol import SamplingParams

NUM_PROMPT = 17
NUM_ANSWER = 12
PROMPT = np.random.default_rng(11).integers(6, 60, NUM_PROMPT)


@pytest.fixture(params=["contrib", "portable"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


OVER_CODES = pytest.mark.parametrize("dialect", ["contrib", "portable", "contrib, cache int8", "contrib, cache int4"])
"""Where a run is held against another one of the same graphs."""


class Drive:
    """The engine's step without its thread: schedule, run, sample; remembers each sequence's logits."""

    def __init__(self, model: Any, settings: Any, num_slots: int = 4, chunk_tokens: int = 7) -> None:
        settings = settings.model_copy(update={"max_sequences": num_slots})
        self.runner = model.runner(settings)
        self.scheduler = Scheduler(model.shape(settings), Pace(chunk_tokens, math.inf))
        self.num_groups = model.bundle.manifest.num_length_groups
        self.logits: dict[Sequence, list[np.ndarray]] = {}

    def add(self, ids: np.ndarray, **sampling: Any) -> Sequence:
        sequence = Sequence("r", FilledPrompt.of_ids(ids), SamplingParams(**sampling), (), (), self.num_groups)
        self.scheduler.add(sequence)
        self.logits[sequence] = []
        return sequence

    def step(self) -> bool:
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

    def until(self, sequence: Sequence, num_output: int) -> None:
        while sequence.num_output_tokens < num_output and self.step():
            pass


@pytest.fixture
def whole_text_logits(llama: Any) -> Any:
    """The function that returns [T, V] of transformers' Llama in one pass.

    It takes the model whose weights that gets, the text, and by layer (first token, rows): from that token on, these
    rows are not seen.
    """
    import torch

    def logits(model: Any, ids: list[int], hidden: dict[int, list[tuple[int, list[int]]]]) -> np.ndarray:
        reference = llama.of(model)
        for at, layer in enumerate(reference.model.layers):
            seen = np.tril(np.ones((len(ids), len(ids)), bool))
            for first, rows in hidden.get(at, []):
                seen[first:, rows] = False
            llama.show_only(layer, seen)
        with torch.no_grad():
            return reference(torch.tensor([ids])).logits[0].numpy()

    return logits


def assert_follows(drive: Drive, sequence: Sequence, expected: np.ndarray) -> None:
    found = np.stack(drive.logits[sequence])
    np.testing.assert_allclose(found, expected[NUM_PROMPT - 1 : NUM_PROMPT - 1 + len(found)], rtol=0, atol=2e-4)


def test_the_reference_is_the_engines_model(tiny_models, settings, dialect, whole_text_logits) -> None:
    model = tiny_models(dialect)
    drive = Drive(model, settings)
    sequence = drive.add(PROMPT)
    drive.until(sequence, NUM_ANSWER)
    assert_follows(drive, sequence, whole_text_logits(model, sequence.ids, {}))


def test_dropping_rows_is_masking_them_and_moves_no_position(tiny_models, settings, dialect, whole_text_logits) -> None:
    model = tiny_models(dialect)
    drive = Drive(model, settings)
    neighbour, sequence = drive.add(PROMPT[::-1]), drive.add(PROMPT)
    drive.until(sequence, 4)
    dropped = [1, 2, 5, 11, 18]  # of the prompt, and a token that was sampled
    held = sequence.rows[0]
    drive.scheduler.keep(sequence, 0, np.setdiff1d(np.arange(held), dropped))
    drive.until(sequence, NUM_ANSWER)
    hidden = {layer: [(held, dropped)] for layer in range(model.config.num_layers)}
    expected = whole_text_logits(model, sequence.ids, hidden)
    assert_follows(drive, sequence, expected)
    assert np.abs(expected - whole_text_logits(model, sequence.ids, {}))[held:].max() > 0.05  # they did matter
    assert sequence.rows == [sequence.num_run - len(dropped)]
    assert sequence.next_position == len(sequence.ids)
    assert_follows(drive, neighbour, whole_text_logits(model, neighbour.ids, {}))


def test_rows_that_were_masked_anyway_change_no_logit_when_they_are_removed(tiny_models, settings, dialect) -> None:
    """Dropped once, a row is masked; whether its place is then taken by others or kept must not matter."""
    model = tiny_models(dialect)
    drives = [Drive(model, settings) for _ in range(2)]
    found = []
    for drive, kept in zip(drives, ([0, 3, 4, 9, 16], [16, 9, 0, 4, 3]), strict=True):
        sequence = drive.add(PROMPT)
        drive.until(sequence, 1)
        drive.scheduler.keep(sequence, 0, np.array(kept))
        drive.until(sequence, NUM_ANSWER)
        found.append(np.stack(drive.logits[sequence]))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2e-5)


def test_layers_of_two_groups_may_keep_different_rows(tiny_models, settings, dialect, whole_text_logits) -> None:
    model = tiny_models(dialect, (0, 1))
    drive = Drive(model, settings)
    sequence = drive.add(PROMPT)
    drive.until(sequence, 3)
    held = sequence.rows[0]
    dropped = {0: [0, 4, 9], 1: [2, 3, 5, 6, 7, 15]}
    for group, rows in dropped.items():
        drive.scheduler.keep(sequence, group, np.setdiff1d(np.arange(held), rows))
    drive.until(sequence, NUM_ANSWER)
    hidden = {group: [(held, rows)] for group, rows in dropped.items()}
    assert_follows(drive, sequence, whole_text_logits(model, sequence.ids, hidden))
    assert sequence.rows == [sequence.num_run - 3, sequence.num_run - 6]


@OVER_CODES
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.3, "seed": 5}])
@pytest.mark.parametrize("preempted_after", [0, 1, 5])
def test_a_sequence_preempted_and_resumed_says_the_same(
    tiny_models, settings, dialect, sampling, preempted_after
) -> None:
    model, answers = tiny_models(dialect), []
    for is_preempted in (False, True):
        drive = Drive(model, settings, num_slots=2)
        neighbour, sequence = drive.add(PROMPT[::-1], max_tokens=20), drive.add(PROMPT, **sampling)
        drive.until(sequence, preempted_after)
        if is_preempted:
            while sequence.slot is None:
                drive.step()
            assert drive.scheduler.preempt(sequence)
            for _ in range(2):  # somebody else takes the slot meanwhile
                drive.step()
        drive.until(sequence, NUM_ANSWER)
        drive.until(neighbour, NUM_ANSWER)
        answers.append((sequence.ids[:], neighbour.ids[: NUM_PROMPT + NUM_ANSWER]))
    assert answers[0] == answers[1]
    assert len(set(answers[0][0][NUM_PROMPT:])) > 3


LONG = np.random.default_rng(12).integers(6, 60, 34)
"""A prompt of two tiles of 16 rows and two tokens."""


def kept_logits(model: Any, settings: Any, before: list[np.ndarray], ids: np.ndarray) -> tuple[Sequence, np.ndarray]:
    """Return what a prompt gives that came after others, and was answered."""
    drive = Drive(model, settings, chunk_tokens=32)
    for each in before:
        drive.until(drive.add(each), 6)
    sequence = drive.add(ids)
    drive.until(sequence, 8)
    return sequence, np.stack(drive.logits[sequence])


@OVER_CODES
@pytest.mark.parametrize(("num_shared", "cached"), [(15, 0), (16, 16), (17, 16), (31, 16), (32, 32), (34, 32)])
def test_a_prompt_whose_rows_were_kept_gives_the_same_bits(
    tiny_models, settings, dialect, num_shared, cached, tmp_path
) -> None:
    """One graph runs prompts, or another than runs steps; what was kept ends anywhere in a chunk."""
    other = np.concatenate([LONG[:num_shared], LONG[num_shared:][::-1] % 50 + 7])
    one = tiny_models(dialect)
    both = [one] if "cache" in dialect else [one, one.with_prompt_graph(tmp_path / "two")]
    for model in both:
        new, expected = kept_logits(model, settings, [], LONG)
        hit, found = kept_logits(model, settings, [other], LONG)
        assert (new.cached_tokens, hit.cached_tokens) == (0, cached)
        np.testing.assert_array_equal(found, expected)


@OVER_CODES
def test_the_next_turn_finds_the_last_prompt_and_reads_the_answer_again(tiny_models, settings, dialect) -> None:
    model, question = tiny_models(dialect), LONG[:30]
    first, _ = kept_logits(model, settings, [], question)
    turn = np.array([*first.ids, 9, 8])
    next_turn, found = kept_logits(model, settings, [question], turn)
    _, expected = kept_logits(model, settings, [], turn)
    assert next_turn.cached_tokens == 16  # of 30, and none of the answer behind them
    np.testing.assert_array_equal(found, expected)


@OVER_CODES
def test_rows_of_a_sequence_that_lost_some_serve_nobody(tiny_models, settings, dialect) -> None:
    model = tiny_models(dialect)
    drive = Drive(model, settings, chunk_tokens=32)
    cut = drive.add(LONG, max_tokens=8)
    drive.until(cut, 2)
    drive.scheduler.keep(cut, 0, np.array([3, 1, 2]))
    beside = drive.add(LONG, max_tokens=2)
    drive.until(cut, 8)
    drive.until(beside, 2)
    after = drive.add(np.array([*LONG[:20], 7, 7, 7]), max_tokens=2)
    drive.until(after, 2)
    assert (beside.cached_tokens, after.cached_tokens) == (0, 16)
    expected = kept_logits(model, settings, [], np.array(after.ids[:23]))[1][:2]
    np.testing.assert_array_equal(np.stack(drive.logits[after]), expected)


@OVER_CODES
def test_sequences_in_a_batch_say_what_they_say_alone(tiny_models, settings, dialect) -> None:
    model = tiny_models(dialect)
    prompts = [LONG[:count] for count in (34, 5, 17, 20)]
    together = Drive(model, settings)
    sequences = [together.add(prompt, max_tokens=12) for prompt in prompts]
    while together.step():
        pass
    for prompt, sequence in zip(prompts, sequences, strict=True):
        alone = Drive(model, settings)
        same = alone.add(prompt, max_tokens=12)
        alone.until(same, 12)
        assert same.ids == sequence.ids
        np.testing.assert_allclose(together.logits[sequence], alone.logits[same], rtol=0, atol=1e-4)


def rows_of(drive: Drive, ids: np.ndarray, wanted: np.ndarray) -> StoredRows:
    """Return rows of a prompt, handed out once it was read."""
    sequence = drive.add(ids)
    sequence.wanted_rows = wanted
    drive.until(sequence, 1)
    drive.runner.hand_out(sequence)
    drive.scheduler.remove(sequence)
    assert sequence.handed_out is not None
    return sequence.handed_out


def behind(drive: Drive, rows: StoredRows, ids: np.ndarray, position: int) -> Sequence:
    """Return a sequence that begins behind rows, at a position of its own."""
    places = np.arange(position, position + len(ids))
    prompt = FilledPrompt(Prompt(ids, (), places, position + len(ids), 0))
    sequence = Sequence("b", prompt, SamplingParams(), (), (), drive.num_groups, behind=rows)
    drive.scheduler.add(sequence)
    drive.logits[sequence] = []
    return sequence


def test_behind_rows_that_were_handed_out_the_others_are_as_if_masked(
    tiny_models, settings, dialect, whole_text_logits
) -> None:
    model, first = tiny_models(dialect), 9
    dropped = np.array([2, 3, 4, 6])
    drive = Drive(model, settings)
    rows = rows_of(drive, PROMPT[:first], np.setdiff1d(np.arange(first), dropped))
    neighbour, sequence = drive.add(PROMPT[::-1]), behind(drive, rows, PROMPT[first:], first)
    drive.until(sequence, NUM_ANSWER)
    ids = [*PROMPT[:first], *sequence.ids]
    hidden = {layer: [(first, dropped.tolist())] for layer in range(model.config.num_layers)}
    expected = whole_text_logits(model, ids, hidden)
    assert_follows(drive, sequence, expected)
    assert np.abs(expected - whole_text_logits(model, ids, {}))[first:].max() > 0.05  # they did matter
    assert_follows(drive, neighbour, whole_text_logits(model, neighbour.ids, {}))
    assert sequence.rows == [first - len(dropped) + sequence.num_run]
    assert sequence.next_position == len(ids)


@OVER_CODES
def test_all_rows_of_a_beginning_are_the_beginning_itself(tiny_models, settings, dialect) -> None:
    """To the bit where it is cut on the grid, which is 16."""
    model = tiny_models(dialect)
    whole = Drive(model, settings, chunk_tokens=32)
    expected = whole.add(PROMPT)
    whole.until(expected, NUM_ANSWER)
    drive = Drive(model, settings, chunk_tokens=32)
    sequence = behind(drive, rows_of(drive, PROMPT[:9], np.arange(9)), PROMPT[9:], 9)
    drive.until(sequence, NUM_ANSWER)
    assert sequence.ids == expected.ids[9:]
    np.testing.assert_allclose(np.stack(drive.logits[sequence]), np.stack(whole.logits[expected]), rtol=0, atol=2e-4)


@OVER_CODES
def test_behind_rows_nobody_finds_a_prefix_and_preempted_it_goes_on_alike(tiny_models, settings, dialect) -> None:
    model = tiny_models(dialect)
    drive = Drive(model, settings)
    rows = rows_of(drive, PROMPT[:9], np.array([0, 1, 7]))
    alone = behind(drive, rows, PROMPT, 9)
    drive.until(alone, NUM_ANSWER)
    drive.scheduler.remove(alone)
    again, other = behind(drive, rows, PROMPT, 9), drive.add(PROMPT)
    drive.until(again, 3)
    assert drive.scheduler.preempt(again)
    assert again.rows == [0] * drive.num_groups
    drive.until(again, NUM_ANSWER)
    drive.until(other, NUM_ANSWER)
    assert again.ids == alone.ids
    assert (again.cached_tokens, other.cached_tokens) == (3, 0)
    plain = Drive(model, settings)
    expected = plain.add(PROMPT)
    plain.until(expected, NUM_ANSWER)
    assert other.ids[: len(expected.ids)] == expected.ids
