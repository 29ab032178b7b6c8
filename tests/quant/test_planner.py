from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bundle.directory import read_manifest
from bundle.errors import QuantizationError
from bundle.manifest import Manifest
from quant.graphs import open_graph
from quant.planner import RECIPES, ComponentPlan, plan_component, recipe_named, require_float
from quant.weights.table import PASSES, load_pass
from quant.weights.weight_pass import WeightPass

VOCABULARY = 96


@pytest.fixture
def manifest(smolvlm_bundle: Path) -> Manifest:
    manifest = read_manifest(smolvlm_bundle)
    assert manifest.decoder is not None
    return manifest.model_copy(update={"decoder": manifest.decoder.model_copy(update={"vocab_size": VOCABULARY})})


@pytest.fixture
def graph(model_of: Callable[..., ir.Model], rng: np.random.Generator) -> ir.Graph:
    weights = {"up": (48, 64), "down": (64, 48), "lm_head": (48, VOCABULARY)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    nodes = [
        ("MatMul", ["x", "up"], "a", {}),
        ("MatMul", ["a", "down"], "b", {}),
        ("MatMul", ["b", "lm_head"], "y", {}),
    ]
    return model_of({"x": (ir.DataType.FLOAT, ["M", 48])}, nodes, arrays, ["y"]).graph


def labels(plan: ComponentPlan) -> dict[str, str]:
    return {layer.name: layer.label for layer in plan.layers}


@pytest.mark.parametrize("weights", RECIPES)
@pytest.mark.parametrize("component", ["vision_encoder", "text_encoder"])
def test_encoders_get_w8a8_whatever_is_asked(graph, manifest, weights: str, component) -> None:
    plan = plan_component(component, graph, manifest, RECIPES[weights])
    assert set(labels(plan).values()) == {"w8a8 8-bit"}
    assert plan.scheme == "int8"
    assert "many rows" in plan.detail
    assert ("8 bits, not 4" in plan.detail) == (weights == "int4")


def test_an_int8_decoder_takes_the_largest_block_that_divides(graph, manifest) -> None:
    plan = plan_component("decoder", graph, manifest, RECIPES["int8"])
    assert labels(plan) == {
        "up": "matmul_nbits 8-bit b32",
        "down": "matmul_nbits 8-bit b64",
        "lm_head": "matmul_nbits 8-bit b32",
    }
    assert plan.scheme == "int8-weight-only"


def test_an_int4_decoder_keeps_its_head_at_8_bits_and_says_why(graph, manifest) -> None:
    plan = plan_component("decoder", graph, manifest, RECIPES["int4"])
    assert labels(plan) == {
        "up": "matmul_nbits 4-bit b32",
        "down": "matmul_nbits 4-bit b32",
        "lm_head": "matmul_nbits 8-bit b32",
    }
    assert plan.scheme == "int4"
    assert plan.detail.splitlines()[1].startswith("1 x matmul_nbits 8-bit b32: the vocabulary's scores")


def test_a_portable_decoder_is_refused_with_what_to_do(graph, manifest) -> None:
    portable = manifest.model_copy(update={"dialect": "portable"})
    with pytest.raises(QuantizationError, match="--dialect contrib"):
        plan_component("decoder", graph, portable, RECIPES["int8"])


def look_up(model_of, rng, ids: str) -> ir.Graph:
    weights = {"t": rng.standard_normal((30, 64)).astype(np.float32), "fixed": np.arange(4)}
    nodes = [("Gather", ["t", ids], "y", {})]
    return model_of({"ids": (ir.DataType.INT64, ["B", "T"])}, nodes, weights, ["y"]).graph


def test_a_token_table_becomes_int8(model_of, rng, manifest) -> None:
    plan = plan_component("embed_tokens", look_up(model_of, rng, "ids"), manifest, RECIPES["int4"])
    assert labels(plan) == {"t": "gather_int8 8-bit b64"}
    assert plan.scheme == "int8-weight-only"


def test_a_table_with_constant_ids_stays_float(model_of, rng, manifest) -> None:
    plan = plan_component("vision_encoder", look_up(model_of, rng, "fixed"), manifest, RECIPES["int8"])
    assert labels(plan) == {"t": "fp32"}
    assert plan.scheme == "fp32"
    assert plan.methods == ()


def test_a_token_table_stays_float_in_the_portable_dialect(model_of, rng, manifest) -> None:
    portable = manifest.model_copy(update={"dialect": "portable"})
    plan = plan_component("text_encoder", look_up(model_of, rng, "ids"), portable, RECIPES["int8"])
    assert plan.detail == "1 x fp32: the portable dialect has no operator for it"


def test_a_graph_without_weights_is_refused(model_of, manifest) -> None:
    inputs = {"x": (ir.DataType.FLOAT, ["M", 4])}
    with pytest.raises(QuantizationError, match="nothing can be made smaller"):
        plan_component(
            "decoder", model_of(inputs, [("Relu", ["x"], "y", {})], {}, ["y"]).graph, manifest, RECIPES["int8"]
        )


def test_unknown_weights_are_answered_with_the_known_ones() -> None:
    with pytest.raises(QuantizationError, match="unknown weights 'int3'; known: int8, int4"):
        recipe_named("int3")


def test_an_fp32_bundle_is_accepted_and_a_quantized_one_named(manifest) -> None:
    require_float(manifest)
    decoder = manifest.components["decoder"].model_copy(update={"scheme": "int4"})
    done = manifest.model_copy(update={"components": {**manifest.components, "decoder": decoder}})
    with pytest.raises(QuantizationError, match=r"quantized already \(decoder is int4\)"):
        require_float(done)


def test_an_exported_decoders_every_linear_layer_is_planned(smolvlm_bundle: Path, manifest) -> None:
    graph = open_graph(smolvlm_bundle / manifest.components["decoder"].file).graph
    plan = plan_component("decoder", graph, manifest, RECIPES["int8"])
    matrices = [name for name, value in graph.initializers.items() if value.shape is not None and len(value.shape) == 2]
    assert sorted(labels(plan)) == sorted(matrices)


@pytest.mark.parametrize("name", PASSES)
def test_every_scheme_of_the_table_loads(name: str) -> None:
    assert issubclass(load_pass(name), WeightPass)


def test_an_unknown_scheme_is_answered_with_the_known_ones() -> None:
    with pytest.raises(QuantizationError, match="known: w8a8, matmul_nbits, gather_int8"):
        load_pass("w2a2")
