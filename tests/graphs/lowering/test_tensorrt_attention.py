"""Attention as TensorRT takes it computes what it computed before, on ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphs.half import halve
from graphs.lowering.tensorrt_attention import fit_attention
from graphs.wide_keys import note_wide_keys

HEADS, KEY, VALUE, ROWS = 3, 10, 4, 7
SINGLE = ir.DataType.FLOAT


def softmax(scores: np.ndarray) -> np.ndarray:
    exp = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def narrow(model_of: Any, wide: int | str = HEADS * KEY) -> ir.Model:
    """Return encoder's attention whose values are narrower than its keys, which may have a width that a run tells."""
    shapes = {"q": wide, "k": wide, "v": HEADS * VALUE}
    inputs = {name: (SINGLE, ["I", ROWS, width]) for name, width in shapes.items()}
    attributes = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": 0.3}
    return model_of(inputs, [("Attention", ["q", "k", "v"], "y", attributes)], {}, ["y"], opset=24)


def capped(model_of: Any) -> ir.Model:
    """Return a decoder's attention over a cache, two query heads a key head, whose scores are capped."""
    inputs = {
        "q": (SINGLE, ["B", 4, "T", KEY]),
        "k": (SINGLE, ["B", 2, ROWS, KEY]),
        "v": (SINGLE, ["B", 2, ROWS, KEY]),
        "seen": (ir.DataType.BOOL, ["B", 1, "T", ROWS]),
    }
    attributes = {"scale": 0.5, "softcap": 1.5}
    return model_of(inputs, [("Attention", ["q", "k", "v", "seen"], "y", attributes)], {}, ["y"], opset=24)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("is_told", [True, False])
def test_values_narrower_than_keys_are_widened_and_cut_again(
    model_of: Any, run: Any, rng: np.random.Generator, is_told: bool
) -> None:
    model = narrow(model_of) if is_told else narrow(model_of, "wide")
    if not is_told:
        (node,) = model.graph
        note_wide_keys(node.outputs[0])
    q, k = (rng.standard_normal((2, ROWS, HEADS * KEY)).astype(np.float32) for _ in "qk")
    v = rng.standard_normal((2, ROWS, HEADS * VALUE)).astype(np.float32)
    fit_attention(model.graph)
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    assert operators(model) != ["Attention"]
    assert attention.inputs[2] is not model.graph.inputs[2]

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(2, ROWS, HEADS, -1).transpose(0, 2, 1, 3)

    weights = softmax(0.3 * split(q) @ split(k).transpose(0, 1, 3, 2))
    expected = (weights @ split(v)).transpose(0, 2, 1, 3).reshape(2, ROWS, -1)
    np.testing.assert_allclose(run(model, q=q, k=k, v=v)[0], expected, atol=1e-5)


def test_capped_scores_are_written_out(model_of: Any, run: Any, rng: np.random.Generator) -> None:
    model = capped(model_of)
    fit_attention(model.graph)
    assert "Attention" not in operators(model)
    assert "Tanh" in operators(model)
    q = rng.standard_normal((2, 4, 3, KEY)).astype(np.float32) * 3
    k, v = (rng.standard_normal((2, 2, ROWS, KEY)).astype(np.float32) for _ in "kv")
    seen = np.arange(ROWS) <= np.array([2, 4])[:, None, None, None] + np.arange(3)[:, None]
    wide_k, wide_v = (np.repeat(each, 2, axis=1) for each in (k, v))
    scores = 1.5 * np.tanh(0.5 * q @ wide_k.transpose(0, 1, 3, 2) / 1.5)
    expected = softmax(np.where(seen, scores, -1e30)) @ wide_v
    np.testing.assert_allclose(run(model, q=q, k=k, v=v, seen=seen)[0], expected, atol=1e-5)


@pytest.mark.parametrize("made", [narrow, capped])
def test_float16_stays_float16(model_of: Any, run: Any, rng: np.random.Generator, made: Any) -> None:
    """A constant of another type would be refused when the model is opened."""
    model = made(model_of)
    halve(model.graph)
    fit_attention(model.graph)
    sizes = {"I": 1, "B": 1, "T": 2}
    feeds = {
        str(value.name): rng.standard_normal([sizes.get(str(size), size) for size in value.shape]) > 0
        if value.dtype == ir.DataType.BOOL
        else rng.standard_normal([sizes.get(str(size), size) for size in value.shape]).astype(np.float16)
        for value in model.graph.inputs
    }
    assert run(model, **feeds)[0].dtype == np.float16


def test_what_tensorrt_takes_stays_as_it_is(model_of: Any) -> None:
    inputs = {name: (SINGLE, ["I", ROWS, HEADS * KEY]) for name in "qkv"}
    attributes = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": 0.3}
    model = model_of(inputs, [("Attention", ["q", "k", "v"], "y", attributes)], {}, ["y"], opset=24)
    (before,) = model.graph
    fit_attention(model.graph)
    assert list(model.graph) == [before]
