from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.form import Form
from graphs.layers import find_linears, find_tables
from graphs.store import drop_unused
from quant.weights.matmul_nbits import MatMulNBits, reference
from quant.weights.w8a8 import PerTokenInt8
from quant.weights.w8a8 import reference as w8a8_reference

FLOAT = ir.DataType.FLOAT
SPELLINGS = {
    "matmul": ([("MatMul", ["x", "w"], "y", {})], False, False),
    "transposed": ([("Transpose", ["w"], "t", {"perm": [1, 0]}), ("MatMul", ["x", "t"], "y", {})], True, False),
    "gemm": ([("Gemm", ["x", "w", "b"], "y", {})], False, True),
    "gemm-transb": ([("Gemm", ["x", "w", "b"], "y", {"transB": 1})], True, True),
    "gemm-of-transpose": ([("Transpose", ["w"], "t", {}), ("Gemm", ["x", "t"], "y", {})], True, False),
}


@pytest.fixture(params=SPELLINGS)
def spelled(request, model_of, rng):
    """Return a model, its W^T [N, K] and its bias in one of the spellings of x @ W + b."""
    nodes, is_stored_by_rows, has_bias = SPELLINGS[request.param]
    rows, bias = rng.standard_normal((6, 40)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    weights = {"w": rows if is_stored_by_rows else np.ascontiguousarray(rows.T)} | ({"b": bias} if has_bias else {})
    return model_of({"x": (FLOAT, ["M", 40])}, nodes, weights, ["y"]), rows, bias if has_bias else np.zeros(6, "f4")


def test_every_spelling_is_found_with_its_rows(spelled) -> None:
    model, rows, _ = spelled
    (linear,) = find_linears(model.graph)
    assert (linear.name, linear.num_inputs, linear.num_outputs) == ("w", 40, 6)
    np.testing.assert_array_equal(linear.rows(), rows)


def test_every_spelling_becomes_matmul_nbits(spelled, run, rng) -> None:
    model, rows, bias = spelled
    x = rng.standard_normal((3, 40)).astype(np.float32)
    MatMulNBits({"w": Form(8, 32)})(model)
    assert "Transpose" not in [node.op_type for node in model.graph]
    assert "w" not in model.graph.initializers
    # The tolerance of test_matmul_nbits: ties of the activation rounding.
    np.testing.assert_allclose(run(model, x=x)[0], reference(x, rows, Form(8, 32)) + bias, atol=2e-2)


def test_every_spelling_becomes_w8a8(spelled, run, rng) -> None:
    model, rows, bias = spelled
    x = rng.standard_normal((3, 40)).astype(np.float32)
    PerTokenInt8({"w": Form(8)})(model)
    np.testing.assert_allclose(run(model, x=x)[0], w8a8_reference(x, rows) + bias, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(
    ("op_type", "attributes"), [("Gemm", {"alpha": 0.5}), ("Gemm", {"transA": 1}), ("Mul", {}), ("MatMul", {})]
)
def test_what_is_not_a_linear_layer_is_left_alone(model_of, rng, op_type: str, attributes: dict[str, float]) -> None:
    shape = (3, 8, 8) if op_type == "MatMul" else (8, 8)
    weights = {"w": rng.standard_normal(shape).astype(np.float32)}
    model = model_of({"x": (FLOAT, [8, 8])}, [(op_type, ["x", "w"], "y", attributes)], weights, ["y"])
    assert find_linears(model.graph) == []


def test_a_product_of_two_activations_is_no_layer(model_of) -> None:
    inputs = {"a": (FLOAT, [4, 4]), "b": (FLOAT, [4, 4])}
    assert find_linears(model_of(inputs, [("MatMul", ["a", "b"], "y", {})], {}, ["y"]).graph) == []


def test_an_embedding_look_up_is_a_table_and_no_linear(model_of, rng) -> None:
    weights = {"t": rng.standard_normal((30, 16)).astype(np.float32)}
    model = model_of({"ids": (ir.DataType.INT64, ["B"])}, [("Gather", ["t", "ids"], "y", {})], weights, ["y"])
    (table,) = find_tables(model.graph)
    assert (table.name, table.num_rows, table.width) == ("t", 30, 16)
    assert find_linears(model.graph) == []


def test_a_look_up_along_another_axis_is_no_table(model_of, rng) -> None:
    weights = {"t": rng.standard_normal((30, 16)).astype(np.float32)}
    nodes = [("Gather", ["t", "ids"], "y", {"axis": 1})]
    assert find_tables(model_of({"ids": (ir.DataType.INT64, ["B"])}, nodes, weights, ["y"]).graph) == []


def test_dropping_what_is_unused_keeps_what_is_read(model_of, rng) -> None:
    weights = {"w": rng.standard_normal((8, 8)).astype(np.float32), "spare": np.ones(3, np.float32)}
    nodes = [("MatMul", ["x", "w"], "y", {}), ("Transpose", ["w"], "dead", {})]
    model = model_of({"x": (FLOAT, ["M", 8])}, nodes, weights, ["y"])
    drop_unused(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert list(model.graph.initializers) == ["w"]
