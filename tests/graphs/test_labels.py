from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from graphs.labels import Label, LayerRole, unlabelled
from graphs.store import open_graph, save_graph

LABELS = [*(Label(role) for role in get_args(LayerRole)), Label("linear", 1), Label("linear", 257)]


@pytest.fixture
def model(model_of: Any, rng: np.random.Generator) -> ir.Model:
    """Two linear layers, one behind a Transpose, and a table; the first is large enough to lie outside the graph."""
    nodes = [
        ("Gather", ["table", "ids"], "rows", {}),
        ("MatMul", ["rows", "large"], "wide", {}),
        ("Transpose", ["small"], "turned", {"perm": [1, 0]}),
        ("MatMul", ["wide", "turned"], "product", {}),
        ("Add", ["product", "bias"], "y", {}),
    ]
    shapes = {"table": (5, 32), "large": (32, 64), "small": (3, 64), "bias": (3,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return model_of({"ids": (ir.DataType.INT64, ["M"])}, nodes, weights, ["y"])


@pytest.mark.parametrize("label", LABELS, ids=str)
def test_a_label_outlives_saving_and_loading_twice(model: ir.Model, tmp_path: Path, label: Label) -> None:
    for name in ("small", "large"):
        label.write(model.graph.initializers[name])
    for file in ("once.onnx", "twice.onnx"):
        save_graph(model, tmp_path / file)
        model = open_graph(tmp_path / file)
    assert [Label.read(model.graph.initializers[name]) for name in ("small", "large")] == [label, label]


def test_a_runtime_passes_over_labels(model: ir.Model, run: Any) -> None:
    ids = np.array([4, 0, 2])
    (before,) = run(model, ids=ids)
    for name in ("table", "small", "large"):
        Label("linear", 7).write(model.graph.initializers[name])
    np.testing.assert_array_equal(run(model, ids=ids)[0], before)


def test_a_new_label_takes_the_place_of_the_old_one(model: ir.Model) -> None:
    weight = model.graph.initializers["small"]
    Label("linear", 16).write(weight)
    Label("head").write(weight)
    assert Label.read(weight) == Label("head")


def test_a_layer_without_a_label_is_refused_in_words(model: ir.Model) -> None:
    weight = model.graph.initializers["small"]
    assert Label.try_read(weight) is None
    expected = "small holds no layer labels: it was exported by an older version; export the checkpoint again"
    with pytest.raises(QuantizationError, match=expected):
        Label.read(weight)


@pytest.mark.parametrize("changed", [{"pocketvlm.role": "convolution"}, {"pocketvlm.rows": "many"}])
def test_a_label_of_another_version_is_refused_with_what_is_known(model: ir.Model, changed: dict[str, str]) -> None:
    weight = model.graph.initializers["small"]
    Label("linear", 16).write(weight)
    weight.metadata_props.update(changed)
    with pytest.raises(
        QuantizationError, match=r"'(convolution|many)'.*known are linear, head, .*export the checkpoint"
    ):
        Label.try_read(weight)


def test_only_weights_of_layers_want_a_label(model: ir.Model) -> None:
    assert unlabelled(model.graph) == ["large", "small", "table"]
    for name in ("large", "table"):
        Label("linear", 1).write(model.graph.initializers[name])
    assert unlabelled(model.graph) == ["small"]


def test_both_matrices_of_experts_want_a_label(small_graphs: ModuleType, rng: np.random.Generator) -> None:
    shapes = ((8, 2), (2, 12, 8), (2, 8, 6))
    model = small_graphs.build_mixture("e", *(rng.standard_normal(shape).astype(np.float32) for shape in shapes))
    assert unlabelled(model.graph) == ["e.down_proj", "e.gate_up_proj", "layers.0.mlp.router.weight"]
