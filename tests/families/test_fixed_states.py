"""Decoders with states of fixed size: what a sequence says does not depend on cuts, slots, neighbours or preemption.

The oracle reads a text whole, from its first token, in a cache of its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from bundle.directory import Bundle
from bundle.errors import UnsupportedConfigError
from export.exporter import export_checkpoint
from quant.kv.needs import missing
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from runtime.cache_shape import cache_shape, within
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import TokenRun
from runtime.filled_prompt import FilledPrompt
from runtime.limits import Limits
from runtime.settings import RuntimeSettings
from runtime.tensorrt.profiles import profiles_of
from serving.engine.pace import Pace
from serving.engine.runner import Runner
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.protocol import SamplingParams

FAMILIES = ("lfm2_vl",)
# float32 sums in another order, on logits above 10
TOLERANCE = 1e-3
CAPACITY, SLOTS = 96, 4
NUM_TOKENS = 250  # the bytes: no control tokens
SETTINGS = RuntimeSettings(intra_threads=1)
# one decoder for all examples, whose slots hold what others left there: that is the point
QUICK = hypothesis_settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)

Ids = np.ndarray


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest, sample_of: Any) -> Bundle:
    found: Bundle = sample_of(request.param, 0).bundle()
    return found


@pytest.fixture(scope="module")
def decoder(bundle: Bundle) -> Decoder:
    """A cache whose slots hold what many tests left there."""
    return Decoder(TokenGraphs(bundle, SETTINGS), cache_shape(bundle.manifest, SLOTS, CAPACITY))


def ids_of(seed: int, num_tokens: int) -> Ids:
    return np.random.default_rng(seed).integers(0, NUM_TOKENS, num_tokens)


def run_of(ids: Ids, start: int, end: int) -> TokenRun:
    return TokenRun(ids[start:end], np.arange(start, end), [start], [end - start - 1])


def whole_logits(bundle: Bundle, ids: Ids) -> np.ndarray:
    """Return [T, V] of a text in one run, in a new cache."""
    fresh = Decoder(TokenGraphs(bundle, SETTINGS), cache_shape(bundle.manifest, 1, CAPACITY))
    run = TokenRun(ids, np.arange(len(ids)), [0], list(range(len(ids))))
    return fresh.run("prompt", 0, [run])[0].copy()


@QUICK
@given(cuts=st.lists(st.integers(1, 39), max_size=6), slot=st.integers(0, SLOTS - 1), seed=st.integers(0, 99))
def test_a_prompt_says_the_same_however_it_is_cut_and_whatever_its_slot_held(
    bundle: Bundle, decoder: Decoder, cuts: list[int], slot: int, seed: int
) -> None:
    ids = ids_of(seed, 40)
    expected = whole_logits(bundle, ids)
    decoder.states.clear(slot)
    ends = sorted({*cuts, len(ids)})
    for start, end in zip([0, *ends], ends, strict=False):
        found = decoder.run("prompt", slot, [run_of(ids, start, end)])[0, 0]
        assert_allclose(found, expected[end - 1], atol=TOLERANCE)


@QUICK
@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=SLOTS), seed=st.integers(0, 99))
def test_steps_of_several_sequences_say_what_each_says_alone(
    bundle: Bundle, decoder: Decoder, lengths: list[int], seed: int
) -> None:
    texts = [ids_of(seed + number, length + 6) for number, length in enumerate(lengths)]
    expected = [whole_logits(bundle, ids) for ids in texts]
    for slot, (ids, length) in enumerate(zip(texts, lengths, strict=True)):
        decoder.states.clear(slot)
        decoder.run("prompt", slot, [run_of(ids, 0, length)])
    for step in range(6):
        runs = [run_of(ids, length + step, length + step + 1) for ids, length in zip(texts, lengths, strict=True)]
        found = decoder.run("step", 0, runs)
        for row, (logits, length) in enumerate(zip(expected, lengths, strict=True)):
            assert_allclose(found[row, 0], logits[length + step], atol=TOLERANCE)


def served(decoder: Decoder, prompts: list[Ids], preempted: set[int], *, chunk: int) -> list[Sequence]:
    """Answer prompts through scheduler and runner, and preempt the running sequence of some steps."""
    runner, shape = Runner(decoder), within(decoder.shape, None, 0, "cpu")
    scheduler = Scheduler(shape, Pace(chunk, math.inf), keeps_prefixes=True)
    sequences = [
        Sequence(str(at), FilledPrompt.of_ids(ids), SamplingParams(max_tokens=8), ()) for at, ids in enumerate(prompts)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    step = 0
    while (batch := scheduler.schedule()) is not None:
        runner.change(scheduler.take_changes())
        logits = runner.run(batch).rows().copy()
        scheduler.advance(batch)
        for row, of_row in zip(batch.rows, logits, strict=True):
            if row.is_last:
                scheduler.append(row.sequence, int(of_row[:NUM_TOKENS].argmax()))
        step += 1
        if step in preempted:
            scheduler.preempt(batch.rows[-1].sequence)
    return sequences


@QUICK
@given(
    lengths=st.lists(st.integers(2, 50), min_size=2, max_size=6),
    preempted=st.sets(st.integers(1, 40), max_size=5),
    chunk=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 99),
)
def test_served_sequences_say_the_same_through_moves_preemption_and_equal_beginnings(
    bundle: Bundle, decoder: Decoder, lengths: list[int], preempted: set[int], chunk: int, seed: int
) -> None:
    """All begin alike, so rows of others would be found; without the state behind them they must not be taken."""
    text = ids_of(seed, max(lengths))
    for sequence in served(decoder, [text[:length] for length in lengths], preempted, chunk=chunk):
        logits = whole_logits(bundle, np.array(sequence.ids))[sequence.num_prompt_tokens - 1 : -1, :NUM_TOKENS]
        said = np.array(sequence.ids[sequence.num_prompt_tokens :])
        assert len(said) == 8
        chosen = np.take_along_axis(logits, said[:, None], axis=1)[:, 0]
        assert (chosen > logits.max(axis=1) - 2 * TOLERANCE).all()


def test_what_is_for_rows_alone_is_refused_by_the_states_that_have_none(sample_of: Any, bundle: Bundle) -> None:
    checkpoint, made = sample_of("lfm2_vl", 0).checkpoint, Path("never")
    for option in ({"segments": [1]}, {"length_groups": 2}):
        with pytest.raises(UnsupportedConfigError, match=r"past_conv\.0.*of kind fixed"):
            export_checkpoint(checkpoint, made, **option)
    assert "states of kind fixed" in missing("snapkv", bundle.manifest)


def test_an_engine_takes_a_state_of_fixed_size_for_as_many_sequences_as_run(bundle: Bundle) -> None:
    manifest = bundle.manifest
    limits = Limits(cache_rows=64, max_batch=3, max_images=1, max_prompt_tokens=32)
    for profile in profiles_of(manifest, manifest.components["decoder"], limits):
        assert profile["past_conv.0"] == ((1, 2, 48), (1, 2, 48), (3, 2, 48))


def test_a_variant_for_cuda_keeps_states_of_fixed_size_in_float16(bundle: Bundle, tmp_path: Path) -> None:
    variant = quantize_bundle(bundle.directory, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    kinds = {state.input: (state.kind, state.dtype, state.shape) for state in variant.states}
    assert kinds["past_conv.0"] == ("fixed", "float16", ("B", 2, 48))
