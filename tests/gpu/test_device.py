"""On a GPU: what was tested on the CPU holds there, where runs are captured and rows move in its memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.directory import Bundle, open_bundle
from bundle.errors import MachineError
from bundle.golden import canary_image
from bundle.prompt import Placeholder, Turn
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from runtime.cache_shape import cache_shape
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import Placed, TokenRun
from runtime.graph import Graph
from runtime.one_embedding import DualEncoderRunner
from runtime.one_request import VisionLanguageRunner
from runtime.operators import PROBES
from runtime.settings import Provider, RuntimeSettings

RNG = np.random.default_rng(5)
TEXTS = [RNG.integers(0, 61, length).tolist() for length in (3, 9, 5, 14)]


def decoder_of(bundle: Bundle, provider: Provider) -> Decoder:
    graphs = TokenGraphs(bundle, RuntimeSettings(provider=provider))
    return Decoder(graphs, cache_shape(bundle.manifest, len(TEXTS), 64))


def run_of(ids: list[int], start: int) -> TokenRun:
    return TokenRun(np.array(ids, np.int64), np.arange(start, start + len(ids)), [start], [len(ids) - 1])


def said(decoder: Decoder) -> list[np.ndarray]:
    """Return the logits of prompts, of steps of changing size, and of a step after rows were moved and dropped."""
    found = [decoder.step("prompt", slot, [run_of(text, 0)]).rows().copy() for slot, text in enumerate(TEXTS)]
    for cut in (2, 8):  # padded, and padded behind rows that are there
        decoder.step("prompt", 1, [run_of(TEXTS[1][:cut], 0)])
        found.append(decoder.step("prompt", 1, [run_of(TEXTS[1][cut:], cut)]).rows().copy())
    lengths = [len(text) for text in TEXTS]
    for size in (4, 2, 3, 1, 4, 2):
        step = decoder.step("step", 0, [run_of([slot + 1], lengths[slot]) for slot in range(size)])
        assert step.greedy_ids is not None
        assert step.greedy_ids.tolist() == step.rows().argmax(axis=1).tolist()
        found.append(step.rows().copy())
        lengths[:size] = [length + 1 for length in lengths[:size]]
    decoder.states.copy(3, 0, [lengths[3]])
    decoder.states.keep(1, 0, np.array([0, 2, 3, 5]))
    found.append(
        decoder.step("step", 0, [run_of([7], lengths[3]), TokenRun(np.array([7]), np.array([11]), [4], [0])]).rows()
    )
    return found


def test_captured_steps_and_moved_rows_say_what_they_say_on_the_cpu(cuda_bundle: Bundle) -> None:
    decoder = decoder_of(cuda_bundle, "cuda")
    assert decoder.graphs.of_phase("step").graph.can_capture
    for found, expected in zip(said(decoder), said(decoder_of(cuda_bundle, "cpu")), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.1)  # float16 sums in another order
        assert np.abs(expected).max() > 2


def test_a_row_whose_logits_are_no_numbers_has_no_choice_and_the_others_have_theirs(cuda_bundle: Bundle) -> None:
    decoder = decoder_of(cuda_bundle, "cuda")
    width = decoder.graphs.embed(np.zeros((1, 1), np.int64)).shape[-1]
    broken = Placed(0, np.full((2, width), np.nan, np.float16))
    for slot in range(3):
        run = run_of([1, 2, 3], 0)
        found = decoder.step("prompt", slot, [replace(run, features=(broken,)) if slot == 1 else run])
        assert (found.greedy_ids.tolist() == [-1]) == (slot == 1)
    step = decoder.step("step", 0, [run_of([7], 3) for _ in range(3)])  # its cache holds them
    assert step.greedy_ids.tolist() == [step.rows()[0].argmax(), -1, step.rows()[2].argmax()]


def test_a_model_is_captured_beside_one_that_serves_and_neither_is_disturbed(cuda_bundle: Bundle) -> None:
    serving, other = decoder_of(cuda_bundle, "cuda"), decoder_of(cuda_bundle, "cuda")
    are_captured, is_over = threading.Event(), threading.Event()

    def serve() -> list[np.ndarray]:
        serving.warm_up(8)
        are_captured.set()
        found = []
        while not is_over.is_set() or len(found) < 2:
            serving.step("prompt", 0, [run_of([1, 2, 3], 0)])
            found.append(serving.step("step", 0, [run_of([4], 3)]).rows().copy())
        return found

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        assert are_captured.wait(60)
        other.warm_up(8)
        is_over.set()
        found = served.result(60)
    other.step("prompt", 0, [run_of([1, 2, 3], 0)])
    expected = other.step("step", 0, [run_of([4], 3)]).rows()
    for each in found:
        np.testing.assert_allclose(each, expected, rtol=0, atol=0.01)


def test_towers_of_bytes_and_text_encoders_say_what_their_parents_say_on_the_cpu(
    clip_bundle: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    quantize_bundle(clip_bundle, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    parent = DualEncoderRunner(open_bundle(clip_bundle), RuntimeSettings())
    made = DualEncoderRunner(open_bundle(tmp_path / "cuda", allow_ungated=True), RuntimeSettings(provider="cuda"))
    for count in (1, 3, 2, 3, 1):  # captured, and replayed with other pixels
        images = [Image.fromarray(rng.integers(0, 256, (48, 40, 3)).astype(np.uint8)) for _ in range(count)]
        texts = ["a cat", "a red square on the left", "x"][:count]
        for found, expected in (
            (made.embed_images(images), parent.embed_images(images)),
            (made.embed_texts(texts), parent.embed_texts(texts)),
        ):
            assert (found * expected).sum(axis=-1).min() > 0.999  # of float16


def test_an_answer_about_an_image_is_the_parents_on_the_cpu(smolvlm_bundle: Path, tmp_path: Path) -> None:
    quantize_bundle(smolvlm_bundle, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    found = []
    for folder, settings in (
        (smolvlm_bundle, RuntimeSettings()),
        (tmp_path / "cuda", RuntimeSettings(provider="cuda")),
    ):
        runner = VisionLanguageRunner(open_bundle(folder, allow_ungated=True), settings)
        prompt = runner.prompt([Turn("user", (Placeholder.IMAGE, "What is this?"))], [canary_image()])
        found.append(runner.answer_logits(prompt, [5, 70, 12, 31]))
    assert np.linalg.norm(found[1] - found[0]) < 0.01 * np.linalg.norm(found[0])


def test_a_float32_attention_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="GroupQueryAttention"):
        Graph(PROBES / "GroupQueryAttention.onnx", RuntimeSettings(provider="cuda"))
