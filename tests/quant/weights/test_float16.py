from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import find_linears, find_tables
from graphs.store import save_graph
from quant.weights.float16 import Float16
from quant.weights.matmul_nbits import MatMulNBits
from quant.weights.w8a8 import PerTokenInt8

FLOAT = ir.DataType.FLOAT
NORMS = ("RMSNormalization", "LayerNormalization")
GRAPHS = [
    ("smolvlm", "vision_encoder"),
    ("smolvlm", "embed_tokens"),
    ("smolvlm", "decoder"),
    ("clip", "vision_encoder"),
    ("clip", "text_encoder"),
    ("siglip", "text_encoder"),
]


def halve(model: ir.Model) -> None:
    layers = [layer.name for layer in (*find_linears(model.graph), *find_tables(model.graph))]
    Float16(dict.fromkeys(layers, Form(16)))(model)


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
@pytest.mark.parametrize(("family", "component"), GRAPHS)
def test_outputs_stay_near_float32_and_keep_their_type(
    graph_of, feeds_of, run, family: str, component: str, dialect: str
) -> None:
    model = graph_of(family, dialect, component)
    feeds = feeds_of(model)
    expected = run(model, **feeds)
    halve(model)
    for found, before in zip(run(model, **feeds), expected, strict=True):
        assert found.dtype == before.dtype == np.float32
        # A float16 has 11 bits, 0.05 % a step; a few random layers with gain 2 multiply that.
        assert np.linalg.norm(found - before) < 0.01 * np.linalg.norm(before)


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_every_operator_has_floats_of_one_type(graph_of, tmp_path, dialect: str) -> None:
    model = graph_of("smolvlm", dialect, "decoder")
    halve(model)
    save_graph(model, tmp_path / "model.onnx")
    typed = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "model.onnx"))
    types = {value.name: value.type.tensor_type.elem_type for value in (*typed.graph.value_info, *typed.graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    for node in typed.graph.node:
        seen = {types[name] for name in node.input if types.get(name) in floats}
        assert len(seen) <= 1, f"{node.op_type} {node.name} reads {seen}"
        if node.op_type in (*NORMS, "Cos", "Sin"):
            assert seen == {onnx.TensorProto.FLOAT}
        if node.op_type in ("MatMul", "GroupQueryAttention", "Attention"):
            assert seen == {onnx.TensorProto.FLOAT16}


def test_weights_take_half_the_bytes(graph_of) -> None:
    model = graph_of("smolvlm", "contrib", "decoder")
    linears = [linear.name for linear in find_linears(model.graph)]
    before = {name: model.graph.initializers[name].const_value.nbytes for name in linears}
    halve(model)
    assert all(model.graph.initializers[f"{name}.fp16"].const_value.nbytes * 2 == before[name] for name in linears)
    assert not before.keys() & model.graph.initializers.keys()


def test_standard_attention_names_no_precision_which_tensorrt_refuses(graph_of) -> None:
    model = graph_of("smolvlm", "portable", "decoder")
    halve(model)
    found = [node for node in model.graph if node.op_type == "Attention"]
    assert len(found) == 3
    assert not any("softmax_precision" in node.attributes for node in found)


def test_positions_beyond_float16_keep_their_angles(graph_of, feeds_of, run) -> None:
    model = graph_of("smolvlm", "contrib", "decoder")
    feeds = feeds_of(model)
    feeds["position_ids"] = feeds["position_ids"] + 70_001
    expected = run(model, **feeds)[0]
    halve(model)
    assert np.linalg.norm(run(model, **feeds)[0] - expected) < 0.01 * np.linalg.norm(expected)


def test_layers_not_named_keep_float32(model_of, run, rng) -> None:
    weights = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in ("a", "b")}
    nodes = [("MatMul", ["x", "a"], "h", {}), ("MatMul", ["h", "b"], "y", {})]
    model = model_of({"x": (FLOAT, ["M", 16])}, nodes, weights, ["y"])
    Float16({"a": Form(16)})(model)
    assert [linear.name for linear in find_linears(model.graph)] == ["b"]
    x = rng.standard_normal((3, 16)).astype(np.float32)
    half = (x.astype(np.float16).astype(np.float32) @ weights["a"].astype(np.float16).astype(np.float32)) @ weights["b"]
    # The product in between is rounded to float16 once.
    np.testing.assert_allclose(run(model, x=x)[0], half, atol=2e-3 * np.abs(half).max())


def test_low_bit_layers_beside_it_read_float16(model_of, run, rng) -> None:
    weights = {name: rng.standard_normal((32, 32)).astype(np.float32) for name in ("a", "b")}
    nodes = [("MatMul", ["x", "a"], "h", {}), ("MatMul", ["h", "b"], "y", {})]
    model = model_of({"x": (FLOAT, ["M", 32])}, nodes, weights, ["y"])
    MatMulNBits({"a": Form(4, 32)})(model)
    x = rng.standard_normal((3, 32)).astype(np.float32)
    (before,) = run(model, x=x)
    Float16({"b": Form(16)})(model)
    assert model.graph.initializers["a.scale.fp16"].const_value.dtype == ir.DataType.FLOAT16
    # Scales and activations lose all but 11 bits; the int8 activations of MatMulNBits may round to another code.
    np.testing.assert_allclose(run(model, x=x)[0], before, atol=0.02 * np.abs(before).max())


def test_a_weight_beyond_float16_is_refused(model_of) -> None:
    weights = {"w": np.full((4, 4), 70_000, np.float32)}
    model = model_of({"x": (FLOAT, ["M", 4])}, [("MatMul", ["x", "w"], "y", {})], weights, ["y"])
    with pytest.raises(QuantizationError, match="w: a weight of 7e\\+04 is beyond float16"):
        halve(model)


def test_a_graph_with_int8_layers_is_refused(model_of, rng) -> None:
    weights = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in ("a", "b")}
    nodes = [("MatMul", ["x", "a"], "h", {}), ("MatMul", ["h", "b"], "y", {})]
    model = model_of({"x": (FLOAT, ["M", 16])}, nodes, weights, ["y"])
    PerTokenInt8({"a": Form(8)})(model)
    with pytest.raises(QuantizationError, match="int8 layers already"):
        halve(model)


def test_other_forms_are_refused() -> None:
    with pytest.raises(QuantizationError, match="16 bits"):
        Float16({"w": Form(8)})
