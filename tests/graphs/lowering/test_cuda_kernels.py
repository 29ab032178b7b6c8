from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.half import halve
from graphs.layers import find_linears
from graphs.lowering.cuda_kernels import require_kernels, require_operators, without_kernel
from graphs.lowering.decoder import lower_decoder
from quant.weights.w8a8 import PerTokenInt8


def test_attention_of_float32_has_no_kernel(decoder_of) -> None:
    """This is what ran on the CPU in silence."""
    model = decoder_of()
    lower_decoder(model, 64)
    found = list(without_kernel(model.graph))
    assert len(found) == 2
    assert all(each.startswith("GroupQueryAttention of float (") for each in found)
    with pytest.raises(QuantizationError, match="2 nodes have no CUDA kernel and would run on the CPU: GroupQuery"):
        require_kernels(model.graph)


def test_chains_of_int8_have_none(model_of, rng) -> None:
    model = model_of(
        {"x": (ir.DataType.FLOAT, ["M", 8])}, [("MatMul", ["x", "w"], "y", {})], {"w": np.eye(8, dtype="f4")}, ["y"]
    )
    PerTokenInt8({layer.name: Form(8) for layer in find_linears(model.graph)})(model)
    assert any("QuantizeLinear" in each for each in without_kernel(model.graph))


def test_shapes_and_ids_are_passed_over(model_of) -> None:
    nodes = [("Shape", ["x"], "s", {}), ("Range", ["a", "b", "a"], "r", {}), ("Relu", ["x"], "y", {})]
    weights = {"a": np.array(1), "b": np.array(9)}
    model = model_of({"x": (ir.DataType.FLOAT16, ["M", 8])}, nodes, weights, ["y"])
    assert list(without_kernel(model.graph)) == []


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.FLOAT])
@pytest.mark.parametrize(
    "op_type", ["BatchNormalization", "CumSum", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "ReduceMin", "Resize"]
)
def test_what_towers_of_convolutions_are_made_of_has_a_kernel(model_of, op_type, dtype) -> None:
    """FastVLM's, MobileCLIP's and CLIP's ResNets, which were refused without need."""
    model = model_of({"x": (dtype, ["I", 8, 4, 4])}, [(op_type, ["x"], "y", {})], {}, ["y"])
    require_operators(model.graph)
    require_kernels(model.graph)


def test_an_operator_without_any_kernel_is_told_before_work_is_done(model_of) -> None:
    model = model_of({"x": (ir.DataType.FLOAT, ["M", 8])}, [("Celu", ["x"], "y", {})], {}, ["y"])
    with pytest.raises(QuantizationError, match=r"--target cuda: \w+ holds operators .* no CUDA kernel: Celu.* Leave"):
        require_operators(model.graph)


def test_attention_that_will_be_of_float16_is_let_through(decoder_of) -> None:
    require_operators(decoder_of().graph)


def test_rows_sorted_by_what_their_tokens_are_cannot_be_captured(model_of) -> None:
    """Mono-InternVL's feed-forwards: a captured run cannot wait for a count."""
    nodes = [("NonZero", ["marks"], "places", {}), ("Relu", ["x"], "y", {})]
    inputs = {"marks": (ir.DataType.BOOL, ["M"]), "x": (ir.DataType.FLOAT, ["M", 8])}
    with pytest.raises(
        QuantizationError, match=r"sorts rows .* 1 times a run, .*\(NonZero\), which a captured run cannot"
    ):
        require_operators(model_of(inputs, nodes, {}, ["y", "places"]).graph)


def test_queries_that_grow_by_a_logarithm_have_a_kernel(model_of) -> None:
    """Ministral 3's, of which no form for CUDA could be made."""
    model = model_of({"x": (ir.DataType.FLOAT16, ["M", 8])}, [("Log", ["x"], "y", {})], {}, ["y"])
    require_kernels(model.graph)


def test_places_between_learned_positions_keep_float32(model_of) -> None:
    """HunyuanOCR's and Qwen3-VL's: 127.4 of 128 rows is no number of float16, nor is what floor leaves of it."""
    nodes = [
        ("Mul", ["x", "side"], "at", {}),
        ("Floor", ["at"], "whole", {}),
        ("Sub", ["at", "whole"], "above", {}),
        ("Mul", ["above", "w"], "y", {}),
    ]
    weights = {"side": np.float32(128), "w": np.ones(8, "f4")}
    model = model_of({"x": (ir.DataType.FLOAT, ["M", 8])}, nodes, weights, ["y"])
    halve(model.graph, singles=["x"])
    kept = {node.op_type: node.outputs[0].dtype for node in model.graph if node.op_type in ("Floor", "Sub")}
    assert kept == {"Floor": ir.DataType.FLOAT, "Sub": ir.DataType.FLOAT}
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT16
    require_kernels(model.graph)
