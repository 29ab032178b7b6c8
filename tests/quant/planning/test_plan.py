from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from bundle.form import Form
from graphs.store import weight_bytes
from quant.calibration.statistics import InputStatistics
from quant.planning.plan import KEPT, Choice, ComponentPlan, LayerPlan, apply_plan, bytes_of

W8A8 = Choice("w8a8", Form(8))


def plan_of(*choices: Choice, scaling: str | None = None) -> ComponentPlan:
    layers = (LayerPlan(name, choice, 72, 40, "why") for name, choice in zip("ab", choices, strict=False))
    return ComponentPlan("decoder", "int8", "int8", tuple(layers), scaling)


@pytest.fixture
def model(model_of: Callable[..., ir.Model], rng: np.random.Generator) -> ir.Model:
    weights = {name: rng.standard_normal((72, 40)).astype(np.float32) for name in "ab"}
    nodes = [("MatMul", ["x", "a"], "y", {}), ("MatMul", ["x", "b"], "z", {})]
    return model_of({"x": (ir.DataType.FLOAT, ["M", 72])}, nodes, weights, ["y", "z"])


@pytest.mark.parametrize(
    "choice",
    [
        KEPT,
        W8A8,
        Choice("w8a8_static", Form(8)),
        *(Choice("matmul_nbits", Form(bits, block)) for bits in (2, 4, 8) for block in (32, 64)),
        Choice("matmul_nbits", Form(4, 32, "hqq")),
        Choice("matmul_nbits", Form(2, 64, "ternary-planes")),
    ],
    ids=lambda choice: choice.label,
)
def test_predicted_bytes_are_those_of_the_rewritten_graph(model: ir.Model, choice: Choice) -> None:
    plan = plan_of(choice, choice)
    inputs = dict.fromkeys("ab", InputStatistics(1, np.ones(72, np.float32)))
    apply_plan(model, plan, inputs)
    assert plan.stored_bytes == weight_bytes(model)


def test_layers_of_a_plan_keep_their_own_forms(model: ir.Model) -> None:
    plan = plan_of(W8A8, Choice("matmul_nbits", Form(4, 32)))
    apply_plan(model, plan)
    ops = {node.op_type for node in model.graph}
    assert {"QuantizeLinear", "MatMulNBits"} <= ops
    assert plan.methods == ("w8a8", "matmul_nbits")


def test_groups_count_equal_choices_and_reasons() -> None:
    assert plan_of(W8A8, W8A8).detail == "2 x w8a8 8-bit: why"
    assert plan_of(W8A8, KEPT).groups() == [
        ("fp32", "why", list(plan_of(KEPT, KEPT).layers[1:])),
        ("w8a8 8-bit", "why", list(plan_of(W8A8).layers)),
    ]


def test_a_part_of_a_plan_and_the_rest_are_the_whole() -> None:
    plan = plan_of(W8A8, KEPT)
    assert plan.only(["a"]).layers + plan.without(["a"]).layers == plan.layers


def test_layers_of_another_plan_are_stored_by_it() -> None:
    ours, theirs = plan_of(W8A8, W8A8), plan_of(KEPT, KEPT)
    mixed = ours.with_layers_of(theirs, {"b"})
    assert [layer.choice for layer in mixed.layers] == [W8A8, KEPT]
    assert mixed.stored_bytes == ours.stored_bytes - bytes_of(W8A8, 72, 40)
    assert mixed.fp32_bytes == ours.fp32_bytes == 2 * 4 * 72 * 40


def test_a_linear_layer_is_called_by_what_it_is_in_its_block() -> None:
    layer = LayerPlan("model.layers.3.mlp.down_proj.weight", KEPT, 8, 8, "why")
    assert layer.part == "down_proj"
    assert replace(layer, kind="head").part == "head"
