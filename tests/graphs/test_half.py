"""What becomes float16 and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphs.half import halve_inside


def test_the_places_that_topk_gives_stay_whole_numbers(model_of: Any, run: Any) -> None:
    x = (ir.DataType.FLOAT, ["B", 5])
    nodes = [("Identity", ["x"], "scores", {}), ("Abs", ["scores"], "y", {})]
    model = model_of({"x": x}, nodes, {"k": np.array([2], np.int64)}, ["y"])
    graph = model.graph
    (scores,) = (node.outputs[0] for node in graph if node.name == "scores")
    found = ir.node(
        "TopK",
        [scores, graph.initializers["k"]],
        {"axis": -1},
        outputs=[ir.Value(name="highest"), ir.Value(name="places")],
    )
    graph.append(found)
    for value, dtype in zip(found.outputs, (ir.DataType.FLOAT, ir.DataType.INT64), strict=True):
        value.type = ir.TensorType(dtype)
        graph.outputs.append(value)
    halve_inside(graph, ())
    _, highest, places = run(model, x=np.array([[0.5, 3, -1, 2, 1]], np.float32))
    np.testing.assert_array_equal(highest, [[3, 2]])
    np.testing.assert_array_equal(places, [[1, 3]])
    assert places.dtype == np.int64


def test_a_constant_within_the_graph_is_cast_where_it_is_read(model_of: Any, run: Any) -> None:
    nodes = [("Constant", [], "most", {"value": ir.tensor(np.array([2], np.float32))}), ("Min", ["x", "most"], "y", {})]
    model = model_of({"x": (ir.DataType.FLOAT, ["B", 3])}, nodes, {}, ["y"])
    halve_inside(model.graph, ())
    np.testing.assert_array_equal(run(model, x=np.array([[1, 2, 3]], np.float32))[0], [[1, 2, 2]])
    (least,) = (node for node in model.graph if node.op_type == "Min")
    assert least.outputs[0].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize("op_type", ["Constant", "ConstantOfShape"])
def test_a_mark_beyond_float16_that_is_multiplied_by_nothing_is_nothing(op_type: str, model_of: Any, run: Any) -> None:
    """Masks as exporters write them; infinity times 0 would be no number."""
    value = {"value": ir.tensor(np.array([np.finfo(np.float32).min], np.float32))}
    made = (op_type, [] if op_type == "Constant" else ["size"], "mark", value)
    nodes = [made, ("Mul", ["x", "mark"], "y", {})]
    model = model_of({"x": (ir.DataType.FLOAT, ["B", 2])}, nodes, {"size": np.array([2], np.int64)}, ["y"])
    halve_inside(model.graph, ())
    ((nothing, masked),) = run(model, x=np.array([[0, 1]], np.float32))[0]
    assert nothing == 0
    assert -np.inf < masked < -3e4


def test_what_is_filled_with_zeros_is_cast_where_it_meets_a_half(model_of: Any, run: Any) -> None:
    nodes = [("ConstantOfShape", ["size"], "zeros", {}), ("Max", ["x", "zeros"], "y", {})]
    model = model_of({"x": (ir.DataType.FLOAT, ["B", 2])}, nodes, {"size": np.array([2], np.int64)}, ["y"])
    halve_inside(model.graph, ())
    np.testing.assert_array_equal(run(model, x=np.array([[-1, 2]], np.float32))[0], [[0, 2]])
