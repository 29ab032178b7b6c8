from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from graphs.store import save_graph
from quant.calibration.sections import SectionedGraph, cut
from runtime.settings import RuntimeSettings

GROUPS = [["x", "a"], ["b"], ["d"], ["e"]]


@pytest.fixture
def model(model_of: Callable[..., ir.Model], rng: np.random.Generator) -> ir.Model:
    """x -> a -> b -> c with x and s read again late, and a late branch that nothing of interest needs."""
    return model_of(
        {"x": (ir.DataType.FLOAT, ["T", 4])},
        [
            ("Sigmoid", ["x"], "s", {}),
            ("MatMul", ["x", "w"], "a", {}),
            ("Relu", ["a"], "b", {}),
            ("Transpose", ["w"], "turned", {"perm": [1, 0]}),
            ("MatMul", ["b", "turned"], "c", {}),
            ("Add", ["c", "s"], "d", {}),
            ("Exp", ["a"], "unread", {}),
            ("MatMul", ["d", "turned"], "e", {}),
            ("Add", ["e", "unread"], "y", {}),
        ],
        {"w": rng.standard_normal((4, 4)).astype(np.float32)},
        ["y"],
    )


def test_sections_see_what_the_whole_graph_computes(
    model: ir.Model, tmp_path: Path, rng: np.random.Generator, one_thread: RuntimeSettings
) -> None:
    save_graph(model, tmp_path / "g.onnx")
    w = model.graph.initializers["w"].const_value.numpy()
    samples = [rng.standard_normal((length, 4)).astype(np.float32) for length in (1, 3)]
    graph = SectionedGraph(tmp_path / "g.onnx", [{"x": x} for x in samples], one_thread)
    seen = [list(graph.run(section)) for section in cut(model.graph, GROUPS)]
    for at, x in enumerate(samples):
        a = x @ w
        d = np.maximum(a, 0) @ w.T + 1 / (1 + np.exp(-x))
        found = {name: array for section in seen for name, array in section[at].items()}
        expected = {"x": x, "a": a, "b": np.maximum(a, 0), "d": d, "e": d @ w.T}
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)  # float32 sums in another order


def test_only_what_later_sections_read_is_carried(model: ir.Model) -> None:
    # "unread" reads a late but leads to no watched value, x comes with every sample, and "turned" is no sample's.
    assert [section.carried for section in cut(model.graph, GROUPS)] == [("s", "a"), ("s", "b"), ("d",), ()]


def test_a_sample_that_cannot_run_is_named(model: ir.Model, tmp_path: Path, one_thread: RuntimeSettings) -> None:
    save_graph(model, tmp_path / "g.onnx")
    samples = [{"x": np.ones((1, width), np.float32)} for width in (4, 5)]
    graph = SectionedGraph(tmp_path / "g.onnx", samples, one_thread)
    with pytest.raises(QuantizationError, match=r"g\.onnx cannot run sample 1: "):
        list(graph.run(cut(model.graph, [["a"]])[0]))


def test_a_graph_that_cannot_be_loaded_is_named(model: ir.Model, tmp_path: Path, one_thread: RuntimeSettings) -> None:
    next(iter(model.graph)).op_type = "NoSuchOperator"
    save_graph(model, tmp_path / "g.onnx")
    graph = SectionedGraph(tmp_path / "g.onnx", [{"x": np.ones((1, 4), np.float32)}], one_thread)
    with pytest.raises(QuantizationError, match=r"cannot be loaded: .*NoSuchOperator"):
        list(graph.run(cut(model.graph, [["s"]])[0]))
