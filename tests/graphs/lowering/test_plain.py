"""The plain form gives what the standard one gives, on ONNX Runtime, and holds nothing that opset 20 lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from bundle.errors import BundleFormatError
from bundle.form import Form
from bundle.states import State
from graphs.layers import find_linears
from graphs.lowering.plain import write_plainly
from graphs.lowering.tensorrt import engine_graph
from graphs.lowering.tensorrt_halves import halve_for_tensorrt
from graphs.store import open_graph, save_graph
from quant.weights.qdq_int4 import DequantizedInt4
from quant.weights.w8a8 import PerTokenInt8

ROWS = 48
NEW = {"Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization"}
CASES = {
    "prompts": (5, [0, 0, 0]),
    "one prompt": (9, [0]),
    "a chunk behind a past": (11, [5]),
    "chunks behind unequal pasts": (7, [12, 30]),
    "a step": (1, [3, 40, 17]),
}
Arrays = dict[str, NDArray[Any]]


def opened(source: Path, *, is_plain: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(source.parent))
    outputs = [str(value.name) for value in open_graph(source).graph.outputs]
    graph = engine_graph(source, outputs, ROWS, is_plain=is_plain)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def feeds_of(session: ort.InferenceSession, rng: np.random.Generator, num_tokens: int, past: list[int]) -> Arrays:
    batch, places = len(past), np.arange(num_tokens)
    known: Arrays = {
        "position_ids": np.array(past)[:, None] + places + 2,  # positions are not rows
        "past_lengths": np.array([past]),
        "logits_indices": np.tile(places, (batch, 1)),
        "input_ids": np.tile(places + 3, (batch, 1)),
        "attention_mask": (places[None] < num_tokens - np.arange(batch)[:, None]).astype(np.int64),
    }
    sizes: dict[object, int] = {"B": batch, "I": batch, "T": num_tokens, "N": num_tokens}
    found: Arrays = {}
    for value in session.get_inputs():
        dtype = np.float16 if value.type == "tensor(float16)" else np.float32
        shape = [sizes.get(size, size) for size in value.shape]
        found[value.name] = known.get(value.name, rng.standard_normal(shape).astype(dtype))
    return found


def assert_near(source: Path, num_tokens: int, past: list[int], tolerance: float) -> None:
    standard, plain = opened(source, is_plain=False), opened(source, is_plain=True)
    feeds = feeds_of(standard, np.random.default_rng(3), num_tokens, past)
    for expected, found in zip(standard.run(None, feeds), plain.run(None, feeds), strict=True):
        assert found.dtype == expected.dtype
        scale = np.abs(expected.astype(np.float32)).max()
        np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=tolerance * scale)


@pytest.mark.parametrize("case", CASES)
def test_a_decoder_gives_the_same(bundle_of: Callable[..., Path], case: str) -> None:
    assert_near(bundle_of("smolvlm", "portable") / "decoder.onnx", *CASES[case], 1e-5)


@pytest.mark.parametrize(
    ("family", "component"),
    [("smolvlm", "vision_encoder"), ("clip", "vision_encoder"), ("clip", "text_encoder"), ("siglip", "text_encoder")],
)
def test_an_encoder_gives_the_same(bundle_of: Callable[..., Path], family: str, component: str) -> None:
    assert_near(bundle_of(family, "portable") / f"{component}.onnx", 8, [0, 0], 1e-5)


def states_of(model: ir.Model) -> list[State]:
    given = [value for value in model.graph.outputs if str(value.name).startswith("present")]
    pairs = zip(model.graph.inputs[4:], given, strict=True)
    return [
        State(input=a.name, output=b.name, dtype="float32", shape=("B", a.shape[1], "S", a.shape[3]), group=0)
        for a, b in pairs
    ]


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_a_decoder_of_float16_gives_the_same(bundle_of: Callable[..., Path], tmp_path: Path, scheme: str) -> None:
    model = open_graph(bundle_of("smolvlm", "portable") / "decoder.onnx")
    if scheme == "int8":
        PerTokenInt8({linear.name: Form(8) for linear in find_linears(model.graph)})(model)
    halve_for_tensorrt(model, states_of(model))
    save_graph(model, tmp_path / "decoder.onnx")
    # float16 has 11 bits; where activations are rounded to 8, some turn to the other neighbour
    assert_near(tmp_path / "decoder.onnx", 7, [12, 30], 0.01 if scheme == "fp16" else 0.05)


@pytest.mark.parametrize("component", ["decoder", "vision_encoder", "embed_tokens"])
def test_it_is_valid_by_the_rules_of_opset_20(bundle_of: Callable[..., Path], component: str, tmp_path: Path) -> None:
    model = open_graph(bundle_of("smolvlm", "portable") / f"{component}.onnx")
    write_plainly(model)
    assert not NEW & {node.op_type for node in model.graph}
    save_graph(model, tmp_path / "plain.onnx")
    onnx.checker.check_model(tmp_path / "plain.onnx", full_check=True)
    assert onnx.load(tmp_path / "plain.onnx", load_external_data=False).opset_import[0].version == 20


def test_blocks_of_4_bits_are_refused_with_what_to_take(bundle_of: Callable[..., Path]) -> None:
    model = open_graph(bundle_of("smolvlm", "portable") / "vision_encoder.onnx")
    linears = [linear for linear in find_linears(model.graph) if linear.num_inputs % 32 == 0]
    DequantizedInt4({linear.name: Form(4, 32) for linear in linears})(model)
    with pytest.raises(BundleFormatError, match="take int8, int8-static or fp16"):
        write_plainly(model)
