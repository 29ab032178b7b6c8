from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from bundle.manifest import Component, TensorSpec
from graphs.lowering.coded_cache import CodedCache
from graphs.lowering.decoder import lower_decoder
from graphs.lowering.last_queries import drop_last_queries, without_last_queries
from graphs.store import save_graph

MAX_POSITIONS, CAPACITY = 64, 48
LAYERS = ["last_queries.0", "last_queries.1"]


def given(model) -> list[str]:
    return [value.name for value in model.graph.outputs if value.name.startswith("last_queries")]


def test_they_go_without_changing_what_is_left(decoder_of, prompt_and_step) -> None:
    model = decoder_of()
    before, num_nodes = prompt_and_step(model), len(model.graph)
    assert given(model) == LAYERS
    drop_last_queries(model)
    assert given(model) == []
    assert len(model.graph) == num_nodes - 2
    for found, wanted in zip(prompt_and_step(model), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("phase", "kept"), [("any", LAYERS), ("prompt", LAYERS), ("step", [])])
def test_graphs_that_run_prompts_keep_them(decoder_of, phase: str, kept: list[str]) -> None:
    model = decoder_of()
    lower_decoder(model, MAX_POSITIONS, phase)
    assert given(model) == kept


def test_a_component_keeps_its_other_optional_outputs() -> None:
    specs = [TensorSpec(name=name, dtype="float32", shape=("B",)) for name in ("greedy_ids", *LAYERS)]
    component = Component(
        file="a.onnx", role="decoder", scheme="fp32", inputs=(), outputs=(), weight_bytes=0, optional_outputs=specs
    )
    assert [spec.name for spec in without_last_queries(component).optional_outputs] == ["greedy_ids"]


def queries_of(model, path, num_tokens: int, num_past: int) -> list[np.ndarray]:
    """Return the last queries of each layer, of a run behind rows of random codes or numbers."""
    save_graph(model, path)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(2)
    feeds = {}
    for port in session.get_inputs():
        if port.name.startswith("past_key_values"):
            sizes = [1, port.shape[1], CAPACITY, port.shape[3]]
            dtype = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}[port.type]
            feeds[port.name] = np.zeros(sizes, dtype)
        elif port.name == "inputs_embeds":
            feeds[port.name] = rng.standard_normal((1, num_tokens, port.shape[2])).astype(np.float32)
    feeds["position_ids"] = np.arange(num_tokens)[None] + 3
    feeds["past_lengths"], feeds["logits_indices"] = np.array([[num_past]]), np.array([[num_tokens - 1]])
    return session.run(LAYERS, feeds)


@pytest.mark.parametrize("phase", ["any", "prompt"])
@pytest.mark.parametrize("scheme", ["float", "int8", "int4"])
@pytest.mark.parametrize(("num_tokens", "num_given"), [(5, 5), (32, 32), (40, 32)])
def test_they_are_those_of_the_graph_as_it_was_exported(
    decoder_of, tmp_path, phase: str, scheme: str, num_tokens: int, num_given: int
) -> None:
    wanted = queries_of(decoder_of(), tmp_path / "before.onnx", num_tokens, 0)
    model, cache = decoder_of(), None
    if scheme != "float":
        pasts = [value for value in model.graph.inputs if value.name.startswith("past_key_values")]
        scales = {value.name: np.full((value.shape[1], value.shape[3]), 0.05, np.float32) for value in pasts}
        cache = CodedCache(scheme, scales)
    lower_decoder(model, MAX_POSITIONS, phase, cache)
    found = queries_of(model, tmp_path / "after.onnx", num_tokens, 0)
    assert found[0].shape == (1, num_given, wanted[0].shape[-1])
    assert found[1].shape == found[0].shape
    known = 2 if scheme == "float" else 1  # the second layer reads what attention over codes gave
    for given, expected in zip(found[:known], wanted[:known], strict=True):
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
