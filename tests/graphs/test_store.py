from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bundle.form import Form
from graphs.store import add_initializer, open_graph, save_graph, weight_bytes
from quant.weights.table import load_pass

LAYERS, WIDTH = 8, 768


@pytest.fixture
def deep_graph(model_of, rng, tmp_path: Path) -> Path:
    names = [f"w{i}" for i in range(LAYERS)]
    sources = ["x", *(f"h{name}" for name in names[:-1])]
    nodes = [("MatMul", [source, name], f"h{name}", {}) for source, name in zip(sources, names, strict=True)]
    weights = {name: rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in names}
    save_graph(
        model_of({"x": (ir.DataType.FLOAT, ["M", WIDTH])}, nodes, weights, [f"h{names[-1]}"]), tmp_path / "a.onnx"
    )
    return tmp_path / "a.onnx"


@pytest.mark.parametrize(("method", "form"), [("w8a8", Form(8)), ("matmul_nbits", Form(4, 32))])
def test_quantizing_a_file_holds_no_copy_of_its_float_weights(deep_graph: Path, method: str, form: Form) -> None:
    stored = LAYERS * WIDTH * WIDTH * 4
    tracemalloc.start()
    model = open_graph(deep_graph)
    load_pass(method)({f"w{i}": form for i in range(LAYERS)})(model)
    save_graph(model, deep_graph.with_name("b.onnx"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A quarter (8 bits) or a sixth (4 bits with scales) for the result, and a few copies of one layer of eight.
    assert peak < 0.9 * stored


def test_large_weights_lie_outside_the_graph_file_and_small_ones_inside(deep_graph: Path) -> None:
    data = deep_graph.with_name("a.onnx.data")
    assert data.stat().st_size >= LAYERS * WIDTH * WIDTH * 4
    assert deep_graph.stat().st_size < 10_000
    assert weight_bytes(open_graph(deep_graph)) == LAYERS * WIDTH * WIDTH * 4


def test_an_initializer_is_added_once_per_name(model_of) -> None:
    graph = model_of({"x": (ir.DataType.FLOAT, [2])}, [("Relu", ["x"], "y", {})], {}, ["y"]).graph
    first = add_initializer(graph, "one", np.ones(1, np.float32))
    assert add_initializer(graph, "one", np.ones(1, np.float32)) is first
    assert list(graph.initializers) == ["one"]
