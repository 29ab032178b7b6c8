from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from graphs.layers import find_linears
from quant.scaling.folding import find_folds

FLOAT = ir.DataType.FLOAT
DIALECTS = ("contrib", "portable")
GRAPHS = [
    ("smolvlm", "vision_encoder"),
    ("smolvlm", "decoder"),
    ("llava-clip-llama", "vision_encoder"),
    ("llava-clip-llama", "decoder"),
    ("llava-siglip-qwen2", "decoder"),
    ("clip", "vision_encoder"),
    ("clip", "text_encoder"),
    ("siglip", "vision_encoder"),
    ("siglip", "text_encoder"),
]
# Behind an activation that is not linear, behind a cache, behind the residual stream, or reading a learned query.
NOTHING_ABSORBS = r"(fc2|linear_1|linear_2|decoder-o_proj|head\.attention\.q_proj)\.weight"


def largest_difference(found, expected) -> float:
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("family", "component"), GRAPHS)
def test_any_positive_scales_leave_every_output_as_it_was(
    graph_of, feeds_of, run, rng, family: str, component: str, dialect: str
) -> None:
    model = graph_of(family, dialect, component)
    feeds = feeds_of(model)
    expected = run(model, **feeds)
    for fold in find_folds(model.graph):
        # Powers of two up to 16 either way would be exact; these are not, so that rounding is part of the test.
        fold.apply(np.exp(rng.uniform(-2.7, 2.7, fold.num_channels)).astype(np.float32))
    # float32 sums of a few hundred terms in another order, through a few layers, relative to the largest value.
    assert largest_difference(run(model, **feeds), expected) < 1e-5


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("family", "component"), GRAPHS)
def test_every_layer_that_can_be_scaled_is_found(graph_of, family: str, component: str, dialect: str) -> None:
    graph = graph_of(family, dialect, component).graph
    found = {reader.name for fold in find_folds(graph) for reader in fold.readers}
    left = {linear.name for linear in find_linears(graph)} - found
    tagged = {name.replace("self_attn.o_proj", "decoder-o_proj") for name in left}
    assert {name for name in tagged if not re.search(NOTHING_ABSORBS, name)} == set()
    assert found


def norm_and_linears(model_of, rng, readers: dict[str, str], extra=(), outputs=None):
    """Return x -> RMSNormalization n -> one MatMul for each reader, and what else is asked for."""
    weights = {"g": np.ones(16, np.float32)}
    others = [name for _, sources, _, _ in extra for name in sources if name.startswith("w")]
    weights |= {name: rng.standard_normal((16, 16)).astype(np.float32) for name in (*readers.values(), *others)}
    nodes = [("RMSNormalization", ["x", "g"], "n", {"axis": -1})]
    nodes += [("MatMul", ["n", weight], output, {}) for output, weight in readers.items()]
    return model_of({"x": (FLOAT, ["B", "T", 16])}, [*nodes, *extra], weights, outputs or [*readers], opset=23)


def test_layers_that_read_one_norm_share_their_scales(model_of, rng) -> None:
    (fold,) = find_folds(norm_and_linears(model_of, rng, {"a": "wa", "b": "wb"}).graph)
    assert [reader.name for reader in fold.readers] == ["wa", "wb"]
    assert [source.weight.name for source in fold.sources] == ["g"]


def test_a_norm_that_the_residual_stream_reads_too_is_left_alone(model_of, rng) -> None:
    extra = [("Add", ["n", "a"], "y", {})]
    assert find_folds(norm_and_linears(model_of, rng, {"a": "wa"}, extra, ["y"]).graph) == []


def test_a_norm_that_is_a_graph_output_is_left_alone(model_of, rng) -> None:
    assert find_folds(norm_and_linears(model_of, rng, {"a": "wa"}, outputs=["a", "n"]).graph) == []


def test_a_weight_that_two_inputs_meet_is_left_alone(model_of, rng) -> None:
    extra = [("MatMul", ["x", "wa"], "b", {})]
    assert find_folds(norm_and_linears(model_of, rng, {"a": "wa"}, extra, ["a", "b"]).graph) == []


def test_a_scale_that_two_norms_use_is_left_alone(model_of, rng) -> None:
    extra = [("RMSNormalization", ["x", "g"], "other", {"axis": -1})]
    assert find_folds(norm_and_linears(model_of, rng, {"a": "wa"}, extra, ["a", "other"]).graph) == []


def test_a_factor_that_is_its_own_gate_is_left_alone(model_of, rng) -> None:
    extra = [("Sigmoid", ["a"], "gate", {}), ("Mul", ["a", "gate"], "h", {}), ("MatMul", ["h", "wd"], "y", {})]
    model = norm_and_linears(model_of, rng, {"a": "wa"}, extra, ["y"])
    assert [reader.name for fold in find_folds(model.graph) for reader in fold.readers] == ["wa"]


def test_a_linear_layer_behind_relu_takes_scales_up_with_its_bias(model_of, run, rng) -> None:
    weights = {
        "w1": rng.standard_normal((8, 12)).astype(np.float32),
        "b1": rng.standard_normal(12).astype(np.float32),
        "w2": rng.standard_normal((5, 12)).astype(np.float32),
        "b2": rng.standard_normal(5).astype(np.float32),
    }
    nodes = [
        ("Gemm", ["x", "w1", "b1"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("Gemm", ["r", "w2", "b2"], "y", {"transB": 1}),
    ]
    model = model_of({"x": (FLOAT, ["M", 8])}, nodes, weights, ["y"])
    x = rng.standard_normal((4, 8)).astype(np.float32)
    expected = run(model, x=x)
    (fold,) = find_folds(model.graph)
    assert [source.weight.name for source in fold.sources] == ["w1", "b1"]
    fold.apply(rng.uniform(0.1, 10, 12).astype(np.float32))
    assert largest_difference(run(model, x=x), expected) < 1e-6
    assert np.abs(model.graph.initializers["b1"].const_value.numpy() / weights["b1"] - 1).min() > 1e-3


def test_heads_of_queries_that_share_a_head_of_values_share_its_scales(model_of, run, rng) -> None:
    weights = {
        "wv": rng.standard_normal((16, 8)).astype(np.float32),
        "bv": rng.standard_normal(8).astype(np.float32),
        "wo": rng.standard_normal((24, 16)).astype(np.float32),
    }
    nodes = [
        ("MatMul", ["x", "wv"], "m", {}),
        ("Add", ["m", "bv"], "v", {}),
        ("Attention", ["q", "k", "v"], "a", {"q_num_heads": 6, "kv_num_heads": 2}),
        ("MatMul", ["a", "wo"], "y", {}),
    ]
    inputs = {"x": (FLOAT, ["B", "T", 16]), "q": (FLOAT, ["B", "T", 24]), "k": (FLOAT, ["B", "T", 8])}
    model = model_of(inputs, nodes, weights, ["y"], opset=23)
    feeds = {name: rng.standard_normal((2, 5, shape[2])).astype(np.float32) for name, (_, shape) in inputs.items()}
    expected = run(model, **feeds)
    (fold,) = find_folds(model.graph)
    assert fold.num_channels == 8
    np.testing.assert_array_equal(fold.channels.reshape(2, 3, 4)[:, :, 0], [[0, 0, 0], [4, 4, 4]])
    fold.apply(rng.uniform(0.1, 10, 8).astype(np.float32))
    assert largest_difference(run(model, **feeds), expected) < 1e-6


def test_scaled_weights_are_computed_when_read(graph_of) -> None:
    graph = graph_of("smolvlm", "contrib", "decoder").graph
    fold = find_folds(graph)[0]
    fold.apply(np.full(fold.num_channels, 2, np.float32))
    assert isinstance(fold.readers[0].weight.const_value, ir.LazyTensor)
