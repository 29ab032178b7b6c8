"""Captured runs on a device that replays them with the addresses and the host's words that they were captured with."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.directory import Bundle, open_bundle
from bundle.golden import canary_image
from bundle.prompt import Placeholder, Turn
from runtime.cache_shape import cache_shape
from runtime.captured_runs import captured_bytes
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import Placed, TokenRun
from runtime.one_request import VisionLanguageRunner
from runtime.providers import WEIGHTS_APART
from runtime.room import budget_of
from runtime.session import Session
from runtime.settings import Provider, RuntimeSettings

RNG = np.random.default_rng(5)
V, ROWS, SLOTS = 61, 64, 4
SIZES = (4, 2, 3, 1, 4, 2)
TEXTS = [RNG.integers(0, V, length).tolist() for length in (3, 9, 5, 14)]


def settings_of(provider: Provider) -> RuntimeSettings:
    return RuntimeSettings(provider=provider, intra_threads=1)


def decoder_of(bundle: Bundle, provider: Provider) -> Decoder:
    return Decoder(TokenGraphs(bundle, settings_of(provider)), cache_shape(bundle.manifest, SLOTS, ROWS))


def run_of(ids: list[int], start: int) -> TokenRun:
    return TokenRun(np.array(ids, np.int64), np.arange(start, start + len(ids)), [start], [len(ids) - 1])


def said(decoder: Decoder) -> Iterator[np.ndarray]:
    """Yield the logits of prompts, of steps of changing size, and of steps after rows were moved and dropped."""
    for slot, text in enumerate(TEXTS):
        yield decoder.step("prompt", slot, [run_of(text, 0)]).rows().copy()
    for cut in (2, 8):  # padded, and padded behind rows that are there
        decoder.step("prompt", 1, [run_of(TEXTS[1][:cut], 0)])
        yield decoder.step("prompt", 1, [run_of(TEXTS[1][cut:], cut)]).rows().copy()
    image = Placed(1, decoder.graphs.embed_text(np.arange(2))[::-1])
    yield decoder.step("prompt", 2, [replace(run_of(TEXTS[2], 0), features=(image,))]).rows().copy()
    lengths = [len(text) for text in TEXTS]
    for size in SIZES:
        step = decoder.step("step", 0, [run_of([slot + 1], lengths[slot]) for slot in range(size)])
        assert step.greedy_ids is not None
        assert step.greedy_ids.tolist() == step.rows().argmax(axis=1).tolist()
        yield step.rows().copy()
        lengths[:size] = [length + 1 for length in lengths[:size]]
    decoder.states.copy(3, 0, [lengths[3]])
    decoder.states.keep(1, 0, np.array([0, 2, 3, 5]))
    moved = TokenRun(np.array([7]), np.array([11]), [4], [0])
    yield decoder.step("step", 0, [run_of([7], lengths[3]), moved]).rows().copy()
    yield decoder.step("step", 2, [run_of([7], lengths[2])]).rows().copy()  # begins at no first slot: launched singly


def test_replayed_prompts_and_steps_say_what_they_say_on_the_cpu(cuda_bundle: Bundle, frozen_device: Any) -> None:
    decoder = decoder_of(cuda_bundle, "cuda")
    decoder.warm_up(8)
    num_captured = frozen_device.num_captured
    assert num_captured == SLOTS * 2 + SLOTS  # prompts of 32 and 64 tokens in each slot, steps of each size
    for found, expected in zip(said(decoder), said(decoder_of(cuda_bundle, "cpu")), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)  # a padded prompt's sums are in another order
        assert np.abs(expected).max() > 2
    assert frozen_device.num_captured == num_captured
    # all prompts but one of a single token, and all steps but that in the third slot
    assert frozen_device.num_replayed == len(TEXTS) + 3 + 1 + len(SIZES) + 1


def test_what_one_thread_captured_another_one_captures_again_with_the_device_to_itself(
    cuda_bundle: Bundle, frozen_device: Any
) -> None:
    decoder = decoder_of(cuda_bundle, "cuda")
    decoder.warm_up(8)
    here, num_captured = list(said(decoder)), frozen_device.num_captured
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(lambda: list(said(decoder))).result()
    assert frozen_device.num_captured > num_captured
    for found, expected in zip(there, here, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_captured_runs_take_what_is_said_of_them(cuda_bundle: Bundle, frozen_device: Any) -> None:
    """Logits of every batch size in one memory: of 256 sequences, those of a small model would else be 6 GiB."""
    shape = cache_shape(cuda_bundle.manifest, SLOTS, ROWS)
    decoder = Decoder(TokenGraphs(cuda_bundle, settings_of("cuda")), shape)
    decoder.warm_up(8)
    assert frozen_device.num_bytes == shape.total_bytes + captured_bytes(cuda_bundle.manifest, shape)
    assert captured_bytes(cuda_bundle.manifest, shape) == budget_of(cuda_bundle.manifest, shape, "cuda").captured_bytes


def test_a_graph_that_cannot_be_captured_runs_uncaptured_and_is_named_once(
    cuda_bundle: Bundle, frozen_device: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened, weights_apart = frozen_device.InferenceSession, []

    def refusing(source: Any, options: Any, providers: Any) -> Any:
        if any(isinstance(each, tuple) and "enable_cuda_graph" in each[1] for each in providers):
            weights_apart.append(options.get_session_config_entry(WEIGHTS_APART))
            raise RuntimeError("This session cannot use the CUDA Graph feature as requested by the user")
        return opened(source, options, providers)

    monkeypatch.setattr(frozen_device, "InferenceSession", refusing)
    with caplog.at_level("WARNING"):
        decoder = decoder_of(cuda_bundle, "cuda")
        decoder.warm_up(8)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "decoder.onnx: its runs cannot be captured here" in told
    assert "cannot use the CUDA Graph feature" in told
    assert (frozen_device.num_captured, weights_apart) == (0, ["1"])
    for found, expected in zip(said(decoder), said(decoder_of(cuda_bundle, "cpu")), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)


@pytest.fixture(scope="module")
def exported(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from export.cuda_bundle import export_for_cuda

    folder = tmp_path_factory.mktemp("cuda") / "tiny"
    export_for_cuda(smolvlm_checkpoint, folder, name="tiny")
    return open_bundle(folder, allow_ungated=True)


def test_replayed_towers_see_each_number_of_tiles_as_the_cpu_does(
    exported: Bundle, frozen_device: Any, rng: np.random.Generator
) -> None:
    """First the load's thread, then the one that serves, as an engine's do."""
    on_device, on_host = (Session(exported, "vision_encoder", settings_of(each)) for each in ("cuda", "cpu"))
    (spec,) = on_host.component.inputs
    shape = tuple(size for size in spec.shape if isinstance(size, int))
    tiles = [rng.integers(0, 256, (count, *shape)).astype(np.uint8) for count in (1, 3, 1, 2, 3, 1)]

    def seen(session: Session) -> list[np.ndarray]:
        return [session.run({spec.name: each})[session.output] for each in tiles]

    expected = seen(on_host)
    with ThreadPoolExecutor(1) as pool:
        for found in (seen(on_device), pool.submit(seen, on_device).result()):
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
    assert frozen_device.num_captured == 2 * 3


def test_an_answer_about_an_image_is_the_cpus(exported: Bundle, frozen_device: Any) -> None:
    found = []
    for provider in ("cpu", "cuda"):
        runner = VisionLanguageRunner(exported, settings_of(provider))
        prompt = runner.prompt([Turn("user", (Placeholder.IMAGE, "What is this?"))], [canary_image()])
        found.append(runner.answer_logits(prompt, [5, 70, 12, 31]))
    assert np.linalg.norm(found[1] - found[0]) < 0.01 * np.linalg.norm(found[0])
    assert frozen_device.num_replayed
