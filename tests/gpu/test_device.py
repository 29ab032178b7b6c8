"""On a GPU: what was tested on the CPU holds there, where runs are captured and rows move in its memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.directory import Bundle
from bundle.errors import MachineError
from runtime.cache_shape import cache_shape
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import TokenRun
from runtime.graph import Graph
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


def test_a_float32_attention_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="GroupQueryAttention"):
        Graph(PROBES / "GroupQueryAttention.onnx", RuntimeSettings(provider="cuda"))
