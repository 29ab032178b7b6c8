from __future__ import annotations

import numpy as np
import pytest

from bundle.manifest import Component, TensorSpec
from graphs.lowering.decoder import lower_decoder
from graphs.lowering.last_queries import drop_last_queries, without_last_queries

MAX_POSITIONS = 64
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
