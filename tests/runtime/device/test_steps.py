"""Runs over buffers of fixed address, on the CPU: what a device is told, and that its answers are a plain decoder's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest

from bundle.directory import Bundle
from runtime.cache_shape import cache_shape
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import Placed, TokenBatch, TokenRun
from runtime.settings import RuntimeSettings

SETTINGS = RuntimeSettings(intra_threads=1)
RNG = np.random.default_rng(5)
V, ROWS = 61, 64


def decoder_of(bundle: Bundle, num_slots: int = 4, rows: int = ROWS) -> Decoder:
    return Decoder(TokenGraphs(bundle, SETTINGS), cache_shape(bundle.manifest, num_slots, rows))


def run_of(ids: list[int], start: int) -> TokenRun:
    return TokenRun(np.array(ids, np.int64), np.arange(start, start + len(ids)), [start], [len(ids) - 1])


def whole_text_logits(bundle: Bundle, ids: list[int]) -> np.ndarray:
    """Return the logits [V] after a text, by ONNX Runtime alone: one run with nothing in the cache."""
    table = ort.InferenceSession(str(bundle.directory / "embed_tokens.onnx"), providers=["CPUExecutionProvider"])
    (embeds,) = table.run(None, {"input_ids": np.array([ids])})
    session = ort.InferenceSession(str(bundle.directory / "decoder.onnx"), providers=["CPUExecutionProvider"])
    feeds = {
        "inputs_embeds": embeds,
        "position_ids": np.arange(len(ids))[None],
        "seqlens_k": np.array([len(ids) - 1], np.int32),
        "total_sequence_length": np.array(len(ids), np.int32),
        "logits_rows": np.array([[len(ids) - 1]]),
        **{state.input: np.zeros(state.sizes(1, ROWS), np.float16) for state in bundle.manifest.states},
    }
    return session.run(["logits"], feeds)[0][0, 0]


def test_every_batch_size_gives_each_sequence_the_logits_of_its_own_text(cuda_bundle: Bundle) -> None:
    decoder = decoder_of(cuda_bundle)
    texts = [RNG.integers(0, V, length).tolist() for length in (3, 9, 1, 14)]
    for slot, text in enumerate(texts):
        found = decoder.step("prompt", slot, [run_of(text, 0)]).rows()[0]
        np.testing.assert_allclose(found, whole_text_logits(cuda_bundle, text), rtol=0, atol=0.05)
    for size in (4, 2, 3, 1, 4, 2):
        for text in texts[:size]:
            text.append(int(RNG.integers(0, V)))
        step = decoder.step("step", 0, [run_of(text[-1:], len(text) - 1) for text in texts[:size]])
        expected = np.stack([whole_text_logits(cuda_bundle, text) for text in texts[:size]])
        # float16 sums of up to 64 terms, 2 layers; logits are a few units wide
        np.testing.assert_allclose(step.rows(), expected, rtol=0, atol=0.05)
        np.testing.assert_array_equal(step.greedy_ids, step.rows().argmax(axis=1))
        assert np.abs(expected).max() > 2


@pytest.mark.parametrize("length", [2, 31, 32, 33, 63])
def test_a_prompt_cut_anywhere_and_padded_says_what_the_whole_text_says(cuda_bundle: Bundle, length: int) -> None:
    """The last piece is too long to be padded where the slot ends; what a padding wrote is overwritten."""
    decoder = decoder_of(cuda_bundle)
    text = RNG.integers(0, V, length).tolist()
    for cut in {1, length // 2, length - 1}:
        decoder.step("prompt", 2, [run_of(text[:cut], 0)])
        found = decoder.step("prompt", 2, [run_of(text[cut:], cut)]).rows()[0]
        np.testing.assert_allclose(found, whole_text_logits(cuda_bundle, text), rtol=0, atol=0.05)
    assert np.abs(found).max() > 2


def test_a_prompt_writes_into_its_own_slot_alone_and_nothing_before_its_first_row(cuda_bundle: Bundle) -> None:
    decoder = decoder_of(cuda_bundle)
    for slot in range(4):
        decoder.run("prompt", slot, [run_of(RNG.integers(0, V, 40).tolist(), 0)])
    before = [buffer.read().copy() for buffer in decoder.states._buffers.values()]
    decoder.step("prompt", 1, [run_of(RNG.integers(0, V, 5).tolist(), 20)])
    for was, buffer in zip(before, decoder.states._buffers.values(), strict=True):
        np.testing.assert_array_equal(buffer.read()[[0, 2, 3]], was[[0, 2, 3]])
        np.testing.assert_array_equal(buffer.read()[1, :, :20], was[1, :, :20])
        assert np.any(buffer.read()[1, :, 20:25] != was[1, :, 20:25])


def test_a_row_whose_logits_are_no_numbers_has_no_choice_and_the_others_have_theirs(cuda_bundle: Bundle) -> None:
    decoder = decoder_of(cuda_bundle)
    width = decoder.graphs.embed(np.zeros((1, 1), np.int64)).shape[-1]
    broken = Placed(0, np.full((2, width), np.nan, np.float16))
    for slot in range(3):
        run = run_of([1, 2, 3], 0)
        found = decoder.step("prompt", slot, [replace(run, features=(broken,)) if slot == 1 else run])
        assert (found.greedy_ids.tolist() == [-1]) == (slot == 1)
    step = decoder.step("step", 0, [run_of([7], 3) for _ in range(3)])  # the cache holds them
    assert step.greedy_ids.tolist() == [step.rows()[0].argmax(), -1, step.rows()[2].argmax()]


def test_prompts_of_many_lengths_are_runs_of_few_shapes(cuda_bundle: Bundle) -> None:
    decoder = decoder_of(cuda_bundle)
    for start, length in ((0, 2), (10, 17), (0, 32), (5, 33), (3, 50), (0, 64)):
        decoder.step("prompt", 1, [run_of(RNG.integers(0, V, length).tolist(), start)])
    steps = decoder._on_device
    assert [shape[2][1] for shape in steps._captured] == [32, 64]
    assert [shape[2][1] for shape in steps._single] == [33, 50]  # 64 rows would not fit behind 5 and 3


def test_prompts_in_slots_far_behind_are_launched_singly(cuda_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.device.steps.PROMPT_SLOTS", 2)
    decoder = decoder_of(cuda_bundle)
    for slot in range(4):
        decoder.step("prompt", slot, [run_of([1, 2, 3], 0)])
    steps = decoder._on_device
    assert [(shape[1], shape[2][1]) for shape in steps._captured] == [(0, 32), (1, 32)]
    assert [(shape[1], shape[2][1]) for shape in steps._single] == [(2, 3), (3, 3)]


def test_all_that_is_captured_is_captured_before_anything_is_served(
    cuda_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of(cuda_bundle)
    monkeypatch.setattr(decoder.graphs.of_phase("step").graph, "can_capture", True)
    decoder.warm_up(8)
    captured = dict(decoder._on_device._captured)
    assert len(captured) == 4 * 2 + 4  # prompts of 32 and 64 tokens in each slot, steps of each size
    for slot in range(4):
        decoder.step("prompt", slot, [run_of(RNG.integers(0, V, 20).tolist(), 0)])
        decoder.step("step", 0, [run_of([3], 20) for _ in range(slot + 1)])
    assert decoder._on_device._captured == captured


def test_states_of_fixed_size_keep_prompts_as_long_as_they_are(
    cuda_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold what was read to the last token, a padding included."""
    decoder = decoder_of(cuda_bundle)
    monkeypatch.setattr(type(decoder.states), "has_fixed", True)
    decoder.step("prompt", 1, [run_of([1, 2, 3], 0)])
    assert [
        (shape[2][1], run._inputs["total_sequence_length"].numpy()) for shape, run in decoder._on_device._single.items()
    ] == [(3, 3)]


def test_a_step_writes_into_no_slot_but_its_own(cuda_bundle: Bundle) -> None:
    decoder = decoder_of(cuda_bundle)
    texts = [RNG.integers(0, V, 6).tolist() for _ in range(4)]
    for slot, text in enumerate(texts):
        decoder.run("prompt", slot, [run_of(text, 0)])
    before = [buffer.read().copy() for buffer in decoder.states._buffers.values()]
    decoder.step("step", 0, [run_of([7], 6) for _ in range(3)])
    for was, buffer in zip(before, decoder.states._buffers.values(), strict=True):
        np.testing.assert_array_equal(buffer.read()[3], was[3])
        assert np.any(buffer.read()[:3] != was[:3], axis=(1, 2, 3)).all()


def test_logits_stay_where_they_are_until_somebody_asks_for_them(
    cuda_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.fixed_run import FixedRun

    fetched: list[str] = []
    fetch = FixedRun.output
    monkeypatch.setattr(FixedRun, "output", lambda run, name: fetched.append(name) or fetch(run, name))
    decoder = decoder_of(cuda_bundle)
    step = decoder.step("step", 0, [run_of([7], 0)])
    assert fetched == ["greedy_ids"]
    step.picked([True]).rows()
    step.rows()
    assert fetched == ["greedy_ids", "logits"]


def test_what_never_changes_on_the_host_is_told_once_for_steps_and_anew_for_prompts(cuda_bundle: Bundle) -> None:
    graphs = TokenGraphs(cuda_bundle, SETTINGS)
    step = graphs.feeds("step", graphs.step(TokenBatch.of([run_of([1], 5), run_of([2], 9)]), bound_rows=ROWS))
    assert step["total_sequence_length"] == ROWS
    assert step["seqlens_k"].tolist() == [5, 9]
    assert step["logits_rows"].tolist() == [[0], [1]]
    prompt = graphs.feeds("prompt", graphs.step(TokenBatch.of([run_of([1, 2, 3], 5)])))
    assert prompt["total_sequence_length"] == 8
    assert prompt["seqlens_k"].tolist() == [7]
    assert prompt["logits_rows"].tolist() == [[2]]
