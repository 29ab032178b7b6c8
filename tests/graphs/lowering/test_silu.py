from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphs.lowering.silu import join_silu
from graphs.store import CONTRIB, drop_unused


def test_a_product_with_its_own_sigmoid_becomes_one_operator(model_of, run, rng) -> None:
    nodes = [("Sigmoid", ["x"], "s", {}), ("Mul", ["x", "s"], "y", {}), ("Mul", ["s", "y"], "z", {})]
    model = model_of({"x": (ir.DataType.FLOAT, ["M", 8])}, nodes, {}, ["z"])
    x = rng.standard_normal((3, 8)).astype(np.float32)
    sigmoid = 1 / (1 + np.exp(-x))
    model.graph.opset_imports[CONTRIB] = 1
    assert join_silu(model.graph) == 1
    drop_unused(model)
    assert [node.op_type for node in model.graph] == ["Sigmoid", "QuickGelu", "Mul"]
    np.testing.assert_allclose(run(model, x=x)[0], x * sigmoid * sigmoid, rtol=1e-5, atol=1e-6)


def test_a_product_with_the_sigmoid_of_a_multiple_of_itself_becomes_one_operator(model_of, run, rng) -> None:
    nodes = [("Mul", ["x", "a"], "m", {}), ("Sigmoid", ["m"], "s", {}), ("Mul", ["x", "s"], "y", {})]
    model = model_of({"x": (ir.DataType.FLOAT, ["M", 8])}, nodes, {"a": np.array(1.702, np.float32)}, ["y"])
    x = rng.standard_normal((3, 8)).astype(np.float32)
    model.graph.opset_imports[CONTRIB] = 1
    assert join_silu(model.graph) == 1
    drop_unused(model)
    assert [node.op_type for node in model.graph] == ["QuickGelu"]
    np.testing.assert_allclose(run(model, x=x)[0], x / (1 + np.exp(-1.702 * x)), rtol=1e-5, atol=1e-6)


def test_sigmoids_of_something_else_stay(model_of) -> None:
    inputs = {"x": (ir.DataType.FLOAT, ["M", 8]), "w": (ir.DataType.FLOAT, ["M", 8])}
    nodes = [
        *(("Mul", ["x", "rows"], "m", {}), ("Sigmoid", ["m"], "s", {}), ("Mul", ["x", "s"], "by a row", {})),
        *(("Mul", ["x", "w"], "n", {}), ("Sigmoid", ["n"], "t", {}), ("Mul", ["x", "t"], "by another", {})),
    ]
    model = model_of(inputs, nodes, {"rows": np.ones(8, np.float32)}, ["by a row", "by another"])
    assert join_silu(model.graph) == 0
