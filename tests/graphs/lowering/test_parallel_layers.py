from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from bundle.form import Form
from graphs.layers import find_linears
from graphs.lowering.joining import joined_name
from graphs.lowering.parallel_layers import join_attention_layers, join_gates
from graphs.store import drop_unused
from quant.weights.table import load_pass

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
FORMS = {
    "matmul_nbits": Form(4, 32),
    "w8a8": Form(8),
    "w8a8_static": Form(8),
    "bnb4": Form(4, 64, "nf4"),
    "planes": Form(2, 32, "ternary-planes"),
    "offsets": Form(2, 32, "ternary-mean"),
    "zeros": Form(4, 32, "hqq"),
    "float-inputs": Form(4, 32, "gptq-zeros", float_inputs=8),
    "coded-scales": Form(4, 32, "gptq-coded"),
    "w8a8-float-inputs": Form(8, float_inputs=8),
}
METHODS = dict.fromkeys(("planes", "offsets", "zeros", "float-inputs", "coded-scales"), "matmul_nbits")


def quantize(model: ir.Model, method: str, form: Form, inputs, names=None) -> None:
    layers = [layer.name for layer in find_linears(model.graph) if layer.name != "lm_head.weight"]
    load_pass(method)(dict.fromkeys(names or layers, form), inputs)(model)


def join(model: ir.Model) -> int:
    gone = join_attention_layers(model.graph) + join_gates(model.graph)
    drop_unused(model)
    model.graph.sort()
    return gone


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("name", ["fp32", *FORMS])
def test_layers_of_one_form_become_one_and_give_the_same_bits(
    name: str, biased: bool, decoder_of, peaks_of, prompt_and_step
) -> None:
    """Three products of each layer are gone: two beside the queries', one beside the gate's."""
    model = decoder_of(qkv_bias=biased, mlp_bias=biased)
    if name != "fp32":
        method = "w8a8" if name == "w8a8-float-inputs" else METHODS.get(name, name)
        quantize(model, method, FORMS[name], peaks_of(model))
    before = prompt_and_step(model)
    assert join(model) == 2 * 3
    for found, wanted in zip(prompt_and_step(model), before, strict=True):
        # float32 sums of a product may be taken in another order where it has more columns.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_a_joined_layer_reads_its_input_once(decoder_of) -> None:
    """W8A8 rounds an input once for each layer that reads it."""
    model = decoder_of()
    quantize(model, "w8a8", FORMS["w8a8"], {})
    assert Counter(node.op_type for node in model.graph)["QuantizeLinear"] == 2 * 7
    join(model)
    assert Counter(node.op_type for node in model.graph)["QuantizeLinear"] == 2 * 4


def test_layers_of_other_forms_stay_apart(decoder_of, prompt_and_step) -> None:
    """Keys and values, of one form, are joined without the queries, whose blocks are of another size."""
    model = decoder_of()
    names = [layer.name for layer in find_linears(model.graph) if layer.name.split(".")[-2] in PROJECTIONS]
    quantize(model, "matmul_nbits", Form(4, 16), {}, [name for name in names if ".q_proj" in name or ".up" in name])
    quantize(
        model, "matmul_nbits", Form(4, 32), {}, [name for name in names if ".q_proj" not in name and ".up" not in name]
    )
    before = prompt_and_step(model)
    assert join(model) == 2
    joined = [name for name in model.graph.initializers if "+" in name and "int4" in name]
    assert joined == [f"model.layers.{layer}.self_attn.k_proj+v_proj.weight.int4" for layer in (0, 1)]
    for found, wanted in zip(prompt_and_step(model), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_layers_of_other_inputs_stay_apart(model_of, rng) -> None:
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("g", "u")}
    nodes = [
        ("Neg", ["x"], "n", {}),
        ("MatMul", ["x", "g"], "gate", {}),
        ("MatMul", ["n", "u"], "up", {}),
        ("Relu", ["gate"], "act", {}),
        ("Mul", ["act", "up"], "y", {}),
    ]
    model = model_of({"x": (ir.DataType.FLOAT, ["M", 8])}, nodes, weights, ["y"])
    assert join_gates(model.graph) == 0


def test_a_name_says_what_was_joined() -> None:
    assert joined_name(["a.0.q.weight", "a.0.k.weight", "a.0.v.weight"]) == "a.0.q+k+v.weight"
    assert joined_name(["a.q", "a.k.b"]) == "a.q+k.b"


@pytest.mark.parametrize("shape", [(3, 8), (8,), (1, 8)], ids=str)
def test_terms_of_other_shapes_stay_apart(shape: tuple[int, ...], model_of, rng) -> None:
    """What is added to the gate is [1, 8]: it lies beside a term of one row, and of two axes, alone."""
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("g", "u")}
    weights |= {"b": np.ones((1, 8), np.float32), "c": np.ones(shape, np.float32)}
    nodes = [
        ("MatMul", ["x", "g"], "g0", {}),
        ("Add", ["g0", "b"], "gate", {}),
        ("MatMul", ["x", "u"], "u0", {}),
        ("Add", ["u0", "c"], "up", {}),
        ("Relu", ["gate"], "act", {}),
        ("Mul", ["act", "up"], "y", {}),
    ]
    model = model_of({"x": (ir.DataType.FLOAT, [3, 8])}, nodes, weights, ["y"])
    assert join_gates(model.graph) == (1 if shape == (1, 8) else 0)
