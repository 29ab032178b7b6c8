"""Prompts in segments among others: chunks and steps in turns, preemption, prefixes, and nobody's answer changed."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.prompt import Prompt, Span
from quant.visual_tokens.inside.fastv import FastV
from runtime.filled_prompt import FilledPrompt
from runtime.segmented_prompt import Choose, Layers, SegmentedPrompt
from serving.engine.pace import Pace
from serving.engine.sampling.sampler import Sampler
from serving.engine.scheduler import Batch, Row, Scheduler
from serving.engine.sequence import Sequence
from serving.protocol import SamplingParams

GROUPS = (0, 1, 1)
IMAGE = slice(3, 23)
NUM_TOKENS = 34


@pytest.fixture(params=["contrib", "portable", "contrib, cache int8"])
def model(request: pytest.FixtureRequest, tiny_models: Any) -> Any:
    return tiny_models(request.param, GROUPS, in_segments=True)


def prompt_of(model: Any, seed: int) -> FilledPrompt:
    rng = np.random.default_rng(seed)
    ids = rng.integers(6, 60, NUM_TOKENS)
    prompt = Prompt(ids, (Span(IMAGE.start, IMAGE.stop, 0, 0),), np.arange(NUM_TOKENS), NUM_TOKENS, 1)
    return FilledPrompt.of(prompt, [rng.normal(size=(20, model.config.hidden_size)).astype(np.float32)])


class Drive:
    """The engine's step without its thread; remembers what ran and every sequence's logits."""

    def __init__(self, model: Any, settings: Any, chunk_tokens: int = 7) -> None:
        settings = settings.model_copy(update={"max_sequences": 3})
        self.runner = model.runner(settings)
        self.scheduler = Scheduler(model.shape(settings), Pace(chunk_tokens, math.inf))
        self.layers = Layers.of(model.bundle.manifest)
        self.batches: list[Batch] = []
        self.logits: dict[Sequence, list[np.ndarray]] = {}

    def add(self, prompt: FilledPrompt, choose: Choose | None, max_tokens: int = 6) -> Sequence:
        segmented = None if choose is None else SegmentedPrompt(prompt, self.layers, choose)
        keys = [b"image"] * prompt.prompt.num_images
        sampling = SamplingParams(max_tokens=max_tokens)
        sequence = Sequence("r", prompt, sampling, (), keys, 2, segmented=segmented)
        self.scheduler.add(sequence)
        self.logits[sequence] = []
        return sequence

    def step(self) -> bool:
        batch = self.scheduler.schedule()
        if batch is None:
            return False
        self.batches.append(batch)
        self.runner.change(self.scheduler.take_changes())
        logits = self.runner.run(batch).rows().copy()
        self.scheduler.advance(batch)
        for row, of_row in zip(batch.rows, logits, strict=True):
            if row.is_last:
                self.logits[row.sequence].append(of_row)
                [choice] = Sampler().choose(of_row[None], [row.sequence.sampling_state])
                self.scheduler.append(row.sequence, choice.token_id)
        return True

    def finish(self) -> None:
        while self.step():
            pass


def alone(model: Any, settings: Any, prompt: FilledPrompt, choose: Choose | None) -> Sequence:
    drive = Drive(model, settings)
    sequence = drive.add(prompt, choose)
    drive.finish()
    return sequence


def test_what_keeps_everything_answers_as_the_plain_prompt_does(model, settings) -> None:
    prompt = prompt_of(model, 0)
    plain, kept = (alone(model, settings, prompt, choose) for choose in (None, lambda cut: cut.image_rows))
    assert kept.ids == plain.ids
    assert kept.rows == plain.rows


def test_rows_of_the_later_segment_are_those_that_were_kept(model, settings) -> None:
    sequence = alone(model, settings, prompt_of(model, 0), FastV(0.25))
    assert sequence.rows == [NUM_TOKENS + 5, NUM_TOKENS - 15 + 5]
    assert sequence.next_position == NUM_TOKENS + 6


def test_answers_beside_others_are_those_alone(model, settings) -> None:
    prompts = [prompt_of(model, seed) for seed in range(5)]
    choices: list[Choose | None] = [FastV(0.25), None, FastV(0.5), None, FastV(0.1)]
    expected = [alone(model, settings, *each).ids for each in zip(prompts, choices, strict=True)]
    drive = Drive(model, settings)
    together = [drive.add(*each) for each in zip(prompts, choices, strict=True)]
    drive.finish()
    assert [sequence.ids for sequence in together] == expected


def test_steps_of_other_answers_run_between_the_chunks_of_segments(model, settings) -> None:
    drive = Drive(model, settings)
    drive.add(prompt_of(model, 0), None, max_tokens=12)
    while not drive.logits[next(iter(drive.logits))]:
        drive.step()
    drive.batches.clear()
    reduced = drive.add(prompt_of(model, 1), FastV(0.25))
    while not drive.logits[reduced]:
        drive.step()
    phases = [(batch.phase, batch.rows[0].segment) for batch in drive.batches]
    assert ("prompt", 0) in phases
    assert ("prompt", 1) in phases
    assert all("step" in (first[0], second[0]) for first, second in pairwise(phases))


@pytest.mark.parametrize("num_steps", [1, 3, 6, 8, 9, 11])
def test_a_preempted_sequence_goes_on_with_the_same_tokens(model, settings, num_steps: int) -> None:
    prompt = prompt_of(model, 0)
    expected = alone(model, settings, prompt, FastV(0.25))
    drive = Drive(model, settings)
    sequence = drive.add(prompt, FastV(0.25))
    for _ in range(num_steps):
        drive.step()
    assert drive.scheduler.preempt(sequence)
    assert sequence.rows == [0, 0]
    drive.finish()
    assert sequence.ids == expected.ids
    assert sequence.rows == expected.rows


@pytest.mark.parametrize("order", [(None, FastV(0.25)), (FastV(0.25), None), (FastV(0.25), FastV(0.25))])
def test_a_reduced_prompt_takes_no_prefix_and_leaves_none(model, settings, order) -> None:
    drive, prompt = Drive(model, settings), prompt_of(model, 0)
    found = []
    for choose in order:
        found.append(drive.add(prompt, choose))
        drive.finish()
    expected = [alone(model, settings, prompt, choose) for choose in order]
    assert [sequence.ids for sequence in found] == [sequence.ids for sequence in expected]
    assert [sequence.cached_tokens for sequence in found] == [0, 0]


def test_plain_prompts_still_share_beside_reduced_ones(model, settings) -> None:
    drive, prompt = Drive(model, settings, chunk_tokens=32), prompt_of(model, 0)
    for choose in (None, FastV(0.25)):
        drive.add(prompt, choose)
        drive.finish()
    again = drive.add(prompt, None)
    drive.finish()
    assert again.cached_tokens == 32


def test_a_segments_row_counts_no_more_rows_than_the_longest_group_holds(model, settings) -> None:
    drive = Drive(model, settings)
    sequence = drive.add(prompt_of(model, 0), FastV(0.25))
    most = []
    while not drive.logits[sequence]:
        batch = drive.scheduler.schedule()
        assert batch is not None
        most.append(batch.rows[0].num_rows)
        logits = drive.runner.run(batch)
        drive.scheduler.advance(batch)
        drive.logits[sequence] += [logits.rows()] if batch.rows[0].is_last else []
    assert max(most) == NUM_TOKENS
    assert most == sorted(most)


def test_a_segments_chunk_is_as_much_work_as_its_share_of_the_layers(model, settings) -> None:
    segmented = SegmentedPrompt(prompt_of(model, 0), Layers.of(model.bundle.manifest), FastV(0.25))
    sequence = Sequence("r", segmented.prompt, SamplingParams(), (), (b"image",), 2, segmented=segmented)
    assert [Row(sequence, 0, 7, segment).share for segment in (None, 0, 1)] == [1.0, pytest.approx(1 / 3), 2 / 3]
    assert sequence.num_left_tokens == NUM_TOKENS


@given(
    keeps=st.lists(st.sampled_from([None, 0.1, 0.25, 0.5]), min_size=2, max_size=4),
    chunk_tokens=st.integers(2, 40),
    preempted=st.tuples(st.integers(0, 3), st.integers(0, 20)),
)
@hypothesis.settings(
    max_examples=15, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_over_codes_no_neighbour_cut_or_preemption_changes_an_answer(
    tiny_models, settings, keeps, chunk_tokens, preempted
) -> None:
    coded = tiny_models("contrib, cache int8", GROUPS, in_segments=True)
    drive = Drive(coded, settings, chunk_tokens)
    asked = [(prompt_of(coded, seed), None if keep is None else FastV(keep)) for seed, keep in enumerate(keeps)]
    together = [drive.add(*each) for each in asked]
    which, num_steps = preempted
    for _ in range(num_steps):
        drive.step()
    drive.scheduler.preempt(together[which % len(together)])
    drive.finish()
    for sequence, each in zip(together, asked, strict=True):
        expected = alone(coded, settings, *each)
        assert sequence.ids == expected.ids
        assert sequence.rows == expected.rows
