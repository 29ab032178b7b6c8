"""Decoders with states of fixed size: what a sequence says does not depend on cuts, slots, neighbours or preemption.

The oracle reads a text whole, from its first token, in a cache of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from bundle.directory import Bundle, open_bundle
from bundle.errors import MachineError, ParameterError, QuantizationError, SignatureError, UnsupportedConfigError
from bundle.image import TileLayout
from bundle.layouts.mllama import MllamaPrompt
from bundle.prompt import Prompt, Span, Turn
from bundle.summary import summary
from export.exporter import export_checkpoint
from quant.kv.needs import missing
from quant.kv_cache.refusals import coded_states
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from runtime.cache_shape import CacheShape, cache_shape, within
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import TokenRun
from runtime.filled_prompt import FilledPrompt
from runtime.limits import Limits
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from runtime.states import StateBuffers
from runtime.tensorrt.profiles import profiles_of
from serving.engine.pace import Pace
from serving.engine.runner import Runner
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.models.fusing import Fusing
from serving.protocol import GenerateRequest, SamplingParams

FAMILIES = ("lfm2_vl", "lfm3_vl", "mllama", "qwen3_5")
# float32 sums in another order, on logits above 10
TOLERANCE = 1e-3
CAPACITY, SLOTS = 96, 4
NUM_TOKENS = 250  # the bytes: no control tokens
Oracle = Callable[[FilledPrompt, list[int]], np.ndarray]
SETTINGS = RuntimeSettings(intra_threads=1)
# one decoder for all examples, whose slots hold what others left there: that is the point
QUICK = hypothesis_settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest, sample_of: Any) -> Bundle:
    found: Bundle = sample_of(request.param, 0).bundle()
    return found


@pytest.fixture(scope="module")
def decoder(bundle: Bundle) -> Decoder:
    """A cache whose slots hold what many tests left there."""
    return Decoder(TokenGraphs(bundle, SETTINGS), cache_shape(bundle.manifest, SLOTS, CAPACITY))


@pytest.fixture(scope="module")
def oracle(bundle: Bundle) -> Oracle:
    """What reads a text whole, in a cache of one slot that is made for it."""
    graphs, shape = TokenGraphs(bundle, SETTINGS), cache_shape(bundle.manifest, 1, CAPACITY)
    return lambda prompt, answer: whole_logits(Decoder(graphs, shape), prompt, answer)


def prompt_of(bundle: Bundle, seed: int, num_tokens: int, image: int = 0) -> FilledPrompt:
    """Return a text of random bytes; where images stand in a memory, with one or two at the same places.

    Args:
        bundle: The model.
        seed: Of the text, and of all images but the last.
        num_tokens: Of the prompt.
        image: Of the last image.
    """
    ids = np.random.default_rng(seed).integers(0, NUM_TOKENS, num_tokens)
    layout = bundle.manifest.image_prompt
    assert layout is not None
    if not isinstance(layout, MllamaPrompt) or num_tokens < 4:
        return FilledPrompt.of_ids(ids)
    places = [2, num_tokens // 2] if seed % 3 and num_tokens > 8 else [num_tokens // 2]
    ids[places] = layout.image_token_id
    spans = tuple(Span(place, place + 1, image, 0) for image, place in enumerate(places))
    side = layout.tile_px
    layouts = [TileLayout(whole_px=(side, side * (1 + (seed + at) % 3))) for at in range(len(places))]
    memory = layout.memory(len(ids), spans, layouts)
    prompt = Prompt(ids, spans, np.arange(len(ids)), len(ids), len(places), memory=memory)
    width = bundle.manifest.components["vision_encoder"].outputs[0].shape[-1]
    assert isinstance(width, int)
    rows = layout.rows_per_tile
    drawn = [np.random.default_rng([seed, at, image * (at == len(places) - 1)]) for at in range(len(places))]
    return FilledPrompt.of(prompt, [each.normal(size=(rows, width)).astype(np.float32) for each in drawn])


def whole_logits(fresh: Decoder, prompt: FilledPrompt, answer: list[int]) -> np.ndarray:
    """Return [T, V] of a prompt and its answer in one run, in a new cache."""
    fresh.states.fill(0, prompt.memory)
    whole = prompt.run(0, prompt.num_tokens, [0], ())
    ids = np.array([*whole.ids, *answer], np.int64)
    behind = prompt.seen_by(len(answer))
    seen = None if whole.seen is None or behind is None else np.concatenate([whole.seen, behind])
    run = TokenRun(ids, np.arange(len(ids)), [0], list(range(len(ids))), whole.features, seen=seen)
    return fresh.run("prompt", 0, [run])[0].copy()


def assert_likeliest(sequence: Sequence, oracle: Oracle) -> None:
    """Check that each token of an answer is the likeliest, or as likely as rounding tells."""
    answer = sequence.ids[sequence.num_prompt_tokens :]
    logits = oracle(sequence.prompt, answer)[sequence.num_prompt_tokens - 1 : -1, :NUM_TOKENS]
    assert len(answer) == 8
    chosen = np.take_along_axis(logits, np.array(answer)[:, None], axis=1)[:, 0]
    assert (chosen > logits.max(axis=1) - 2 * TOLERANCE).all()


def begin(decoder: Decoder, slot: int, prompt: FilledPrompt) -> None:
    decoder.states.clear(slot)
    decoder.states.fill(slot, prompt.memory)


@QUICK
@given(cuts=st.lists(st.integers(1, 39), max_size=6), slot=st.integers(0, SLOTS - 1), seed=st.integers(0, 99))
def test_a_prompt_says_the_same_however_it_is_cut_and_whatever_its_slot_held(
    bundle: Bundle, decoder: Decoder, oracle: Oracle, cuts: list[int], slot: int, seed: int
) -> None:
    prompt = prompt_of(bundle, seed, 40)
    expected = oracle(prompt, [])
    begin(decoder, slot, prompt)
    ends = sorted({*cuts, 40})
    for start, end in zip([0, *ends], ends, strict=False):
        found = decoder.run("prompt", slot, [prompt.run(start, end, [start], [end - start - 1])])[0, 0]
        assert_allclose(found, expected[end - 1], atol=TOLERANCE)


@QUICK
@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=SLOTS), seed=st.integers(0, 99))
def test_steps_of_several_sequences_say_what_each_says_alone(
    bundle: Bundle, decoder: Decoder, oracle: Oracle, lengths: list[int], seed: int
) -> None:
    prompts = [prompt_of(bundle, seed + number, length) for number, length in enumerate(lengths)]
    answers = np.random.default_rng(seed).integers(0, NUM_TOKENS, (len(lengths), 6))
    expected = [oracle(*each) for each in zip(prompts, answers.tolist(), strict=True)]
    for slot, prompt in enumerate(prompts):
        begin(decoder, slot, prompt)
        decoder.run("prompt", slot, [prompt.run(0, prompt.num_tokens, [0], [0])])
    for step in range(6):
        runs = [
            TokenRun(answer[step : step + 1], np.array([length + step]), [length + step], [0], seen=prompt.seen_by(1))
            for prompt, answer, length in zip(prompts, answers, lengths, strict=True)
        ]
        found = decoder.run("step", 0, runs)
        for row, (logits, length) in enumerate(zip(expected, lengths, strict=True)):
            assert_allclose(found[row, 0], logits[length + step], atol=TOLERANCE)


def served(
    decoder: Decoder,
    prompts: list[FilledPrompt],
    preempted: set[int],
    *,
    chunk: int,
    image_keys: list[bytes] | None = None,
    budget_bytes: int | None = None,
) -> list[Sequence]:
    """Answer prompts through scheduler and runner, and preempt the running sequence of some steps."""
    runner, shape = Runner(decoder), within(decoder.shape, budget_bytes, decoder.shape.num_spare_slots, "cpu")
    scheduler = Scheduler(shape, Pace(chunk, math.inf), keeps_prefixes=True)
    keys_of = [[key] for key in image_keys] if image_keys else [[b"first", b"last"]] * len(prompts)
    sequences = [
        Sequence(str(at), prompt, SamplingParams(max_tokens=8), (), keys)
        for at, (prompt, keys) in enumerate(zip(prompts, keys_of, strict=True))
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
    lengths=st.lists(st.sampled_from([30, 45]), min_size=2, max_size=6),
    preempted=st.sets(st.integers(1, 40), max_size=5),
    chunk=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 99),
)
def test_served_sequences_say_the_same_through_moves_preemption_and_equal_beginnings(
    bundle: Bundle, decoder: Decoder, oracle: Oracle, lengths: list[int], preempted: set[int], chunk: int, seed: int
) -> None:
    """All begin alike, so rows of others are found; without the state behind them they must not be taken.

    Where there is a memory, their last images differ, though a digest says otherwise: what stands before an image sees
    it too.
    """
    prompts = [prompt_of(bundle, seed, length, image) for image, length in enumerate(lengths)]
    for sequence in served(decoder, prompts, preempted, chunk=chunk):
        assert_likeliest(sequence, oracle)


def shown(seed: int, image: int, num_behind: int) -> FilledPrompt:
    """Return a text about an image that takes 30 tokens: 4 before it, some behind."""
    rng, features = np.random.default_rng(seed), np.random.default_rng(image).normal(size=(30, 48))
    ids = np.array([1, 2, 3, 4, *[259] * 30, *rng.integers(0, NUM_TOKENS, num_behind)], np.int64)
    prompt = Prompt(ids, (Span(4, 34, 0, 0),), np.arange(len(ids)), len(ids), 1)
    return FilledPrompt.of(prompt, [features.astype(np.float32)])


def test_prompts_begin_where_states_were_kept_at_their_end_and_behind_images(convolving: Bundle) -> None:
    shape = replace(cache_shape(convolving.manifest, 2, CAPACITY), num_spare_slots=3)
    decoder = Decoder(TokenGraphs(convolving, SETTINGS), shape)
    first, asked_again = shown(0, image=7, num_behind=9), shown(1, image=7, num_behind=20)
    other_image, longer = shown(0, image=8, num_behind=9), shown(0, image=7, num_behind=40)
    prompts = [first, asked_again, other_image, longer, prompt_of(convolving, 5, 60), first]
    keys = [b"7", b"7", b"8", b"7", b"", b"7"]
    sequences = served(decoder, prompts, set(), chunk=64, image_keys=keys, budget_bytes=1 << 24)
    # 34 tokens to behind the image are 32 whole ones of the grid, and so are 41 of 43 to the end; of 58, 48
    assert [sequence.cached_tokens for sequence in sequences] == [0, 32, 0, 32, 0, 32]
    graphs, alone = TokenGraphs(convolving, SETTINGS), cache_shape(convolving.manifest, 1, CAPACITY)
    for sequence in sequences:
        assert_likeliest(sequence, lambda *text: whole_logits(Decoder(graphs, alone), *text))


def test_a_sequence_that_ends_early_leaves_only_states_that_are_its_own() -> None:
    shape = CacheShape(2, CAPACITY, 1, 1, num_spare_slots=2, has_snapshots=True)
    scheduler = Scheduler(shape, Pace(64, math.inf))

    def begun(prompt: FilledPrompt, num_runs: int) -> Sequence:
        sequence = Sequence("r", prompt, SamplingParams(max_tokens=1), (), [b"7"])
        scheduler.add(sequence)
        for _ in range(num_runs):
            batch = scheduler.schedule()
            assert batch is not None
            scheduler.advance(batch)
        return sequence

    whole = begun(shown(0, image=7, num_behind=20), num_runs=3)  # to behind the image, near the end, to the end
    assert (whole.num_run, whole.snapshots) == (54, [32, 48])
    scheduler.append(whole, 5)
    early = begun(shown(1, image=7, num_behind=20), num_runs=0)
    assert scheduler.schedule() is not None
    assert (early.num_run, early.snapshots) == (32, [32, 0])
    scheduler.remove(early)
    assert begun(shown(1, image=7, num_behind=20), num_runs=1).cached_tokens == 32


def test_a_shadow_takes_no_rows_without_the_state_behind_them() -> None:
    """Contrasted answers have one: of other prompts, which begin as those of others do."""
    scheduler = Scheduler(CacheShape(3, CAPACITY, 1, 1, num_spare_slots=2, has_snapshots=True), Pace(64, math.inf))
    first = Sequence("r", shown(0, image=7, num_behind=60), SamplingParams(max_tokens=1), (), [b"7"])
    scheduler.add(first)
    while (batch := scheduler.schedule()) is not None and first.num_run < first.num_prompt_tokens:
        scheduler.advance(batch)
    scheduler.append(first, 5)
    filled = shown(0, image=7, num_behind=60)
    filled.prompt.token_ids[60:] += 1
    shadow = Sequence("s", filled, SamplingParams(), (), [b"7"])
    scheduler.add(Sequence("c", shown(2, 7, 20), SamplingParams(), (), [b"7"], shadow=shadow))
    assert scheduler.schedule() is not None
    assert shadow.cached_tokens == 32  # rows of 60 tokens are there, and the state behind 32


def test_a_chat_goes_on_where_its_last_prompt_ended(convolving: Bundle) -> None:
    decoder = Decoder(TokenGraphs(convolving, SETTINGS), cache_shape(convolving.manifest, 2, CAPACITY))
    (one,) = served(decoder, [prompt_of(convolving, 3, 40)], set(), chunk=64)
    runner_sees = FilledPrompt.of_ids(np.array([*one.ids, 7, 8, 9, *range(20, 40)]))
    again, other = served(decoder, [prompt_of(convolving, 3, 40), runner_sees], set(), chunk=64)
    assert (again.cached_tokens, other.cached_tokens) == (0, 32)


@pytest.fixture(scope="module")
def convolving(sample_of: Any) -> Bundle:
    found: Bundle = sample_of("lfm2_vl", 0).bundle()
    return found


@pytest.fixture(scope="module")
def remembering(sample_of: Any) -> Bundle:
    found: Bundle = sample_of("mllama", 0).bundle()
    return found


@pytest.mark.parametrize(
    ("family", "named"),
    [("lfm2_vl", r"past_conv\.0.*of kind fixed"), ("mllama", "memory"), ("qwen3_5", r"past_conv\.0.*of kind fixed")],
)
@pytest.mark.parametrize("option", [{"segments": [1]}, {"length_groups": 2}])
def test_what_is_for_rows_alone_is_refused_by_the_states_that_have_none(
    sample_of: Any, family: str, named: str, option: dict[str, Any]
) -> None:
    sample = sample_of(family, 0)
    with pytest.raises(UnsupportedConfigError, match=named):
        export_checkpoint(sample.checkpoint, Path("never"), **option)


def test_policies_and_codes_for_rows_are_refused_by_the_kinds_of_states(bundle: Bundle) -> None:
    kind = next(state.kind for state in bundle.manifest.states if state.kind != "rows")
    assert f"states of kind {kind}" in missing("snapkv", bundle.manifest)
    with pytest.raises(QuantizationError, match=f"of kind {kind}; codes are for keys and values"):
        coded_states(bundle.manifest, "int8", "cpu")
    with pytest.raises(ParameterError, match=f"has states of kind {kind}, and fused prefixes are rows"):
        Fusing(bundle.manifest, "cpu").check(GenerateRequest("r", "tiny", (), fuses=True), None, None)


def test_what_a_sequence_takes_whatever_its_length_is_told(bundle: Bundle) -> None:
    fixed = f"and {bundle.manifest.state_bytes_per_sequence / 1024:.1f} KiB per sequence"
    assert any(fixed in line for line in summary(bundle.directory, bundle.manifest) if isinstance(line, str))


def test_an_engine_takes_a_state_of_fixed_size_for_as_many_sequences_as_run(convolving: Bundle) -> None:
    manifest = convolving.manifest
    limits = Limits(cache_rows=64, max_batch=3, max_images=1, max_prompt_tokens=32)
    for profile in profiles_of(manifest, manifest.components["decoder"], limits):
        assert profile["past_conv.0"] == ((1, 2, 48), (1, 2, 48), (3, 2, 48))


def test_a_variant_for_cuda_keeps_states_of_fixed_size_in_float16(convolving: Bundle, tmp_path: Path) -> None:
    variant = quantize_bundle(convolving.directory, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    kinds = {state.input: (state.kind, state.dtype, state.shape) for state in variant.states}
    assert kinds["past_conv.0"] == ("fixed", "float16", ("B", 2, 48))


def test_memory_stays_in_a_hosts_memory(remembering: Bundle, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"--target cuda.*cross_key_values\.0\.key.*of kind memory"):
        quantize_bundle(remembering.directory, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    manifest = remembering.manifest
    with pytest.raises(MachineError, match=r"memory of images.*provider is cuda"):
        StateBuffers(manifest.states, cache_shape(manifest, 1, 8), "cuda")


def test_features_that_do_not_fit_the_memory_are_refused(remembering: Bundle) -> None:
    manifest = remembering.manifest
    buffers = StateBuffers(manifest.states, cache_shape(manifest, 1, 8), "cpu")
    with pytest.raises(SignatureError, match=r"holds 136 rows .* given are \[137, 64\]"):
        buffers.fill(0, np.zeros((137, 64), np.float32))
    with pytest.raises(SignatureError, match=r"numbers 48 to 63 .* given are \[9, 50\]"):
        buffers.fill(0, np.zeros((9, 50), np.float32))


def test_a_variant_in_float16_leaves_a_recurrence_in_float32(sample_of: Any, tmp_path: Path) -> None:
    """What it holds is a sum over all tokens; a convolution's last inputs are not."""
    sample = sample_of("qwen3_5", 0)
    parent = sample.bundle("portable")
    options = Options(target="tensorrt")
    variant = quantize_bundle(parent.directory, tmp_path / "halved", weights="fp16", options=options)
    kinds = {state.input: state.dtype for state in variant.states}
    assert (kinds["past_recurrent.0"], kinds["past_conv.0"]) == ("float32", "float16")
    whole = VisionLanguageRunner(parent, SETTINGS)
    halved = VisionLanguageRunner(open_bundle(tmp_path / "halved", allow_ungated=True), SETTINGS)
    prompts = [each.prompt([Turn("user", ("Tell me about a state.",))], []) for each in (whole, halved)]
    expected, found = (
        each.answer_logits(prompt, [1, 2, 3]) for each, prompt in zip((whole, halved), prompts, strict=True)
    )
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.999
