from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bundle.directory import read_manifest
from bundle.form import Form
from graphs.layers import find_tables
from graphs.lowering.tensorrt import engine_graph
from graphs.store import open_graph, save_graph
from quant.weights.gather_blocks import GatherRows


def given(path: Path) -> tuple[str, ...]:
    return read_manifest(path.parent).always_given(path.stem)


@pytest.fixture
def table(bundle_of: Callable[..., Path], tmp_path: Path) -> Path:
    """A token table of int8 rows, on disk."""
    model = open_graph(bundle_of("smolvlm", "portable") / "embed_tokens.onnx")
    GatherRows({each.name: Form(8) for each in find_tables(model.graph)})(model)
    save_graph(model, tmp_path / "embed_tokens.onnx")
    return tmp_path / "embed_tokens.onnx"


def test_a_table_is_dequantized_before_it_is_looked_up_and_gives_the_same_bits(table: Path) -> None:
    serialized = engine_graph(table, ["inputs_embeds"], 64)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(table.parent))
    lowered = ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    plain = ort.InferenceSession(table, providers=["CPUExecutionProvider"])
    ids = np.array([[3, 250, 0], [3, 7, 277]])
    (found,), (expected,) = (session.run(None, {"input_ids": ids}) for session in (lowered, plain))
    np.testing.assert_array_equal(found, expected)


def test_codes_go_nowhere_but_into_a_dequantizer(table: Path) -> None:
    graph = ir.from_proto(ir.serde.onnx.ModelProto.FromString(engine_graph(table, ["inputs_embeds"], 64))).graph
    codes = [value for value in graph.initializers.values() if value.dtype == ir.DataType.INT8]
    assert [node.op_type for value in codes for node, _ in value.uses()] == ["DequantizeLinear"]
    assert [node.op_type for node in graph] == ["DequantizeLinear", "Gather"]


def test_the_caches_length_is_a_number_and_other_sizes_stay_free(bundle_of: Callable[..., Path]) -> None:
    source = bundle_of("smolvlm", "portable") / "decoder.onnx"
    graph = ir.from_proto(ir.serde.onnx.ModelProto.FromString(engine_graph(source, given(source), 96))).graph
    shapes = {value.name: [str(size) for size in value.shape] for value in (*graph.inputs, *graph.outputs)}
    assert shapes["past_key_values.0.key"] == shapes["present.2.value"] == ["B", "2", "96", "8"]
    assert shapes["inputs_embeds"] == ["B", "T", "48"]


def test_weights_stay_in_the_files_beside_the_source(bundle_of: Callable[..., Path]) -> None:
    source = bundle_of("smolvlm", "portable") / "decoder.onnx"
    assert len(engine_graph(source, given(source), 64)) < 1.1 * source.stat().st_size
    assert source.with_name("decoder.onnx.data").stat().st_size > 2 * source.stat().st_size


def test_what_callers_may_do_without_is_left_out(bundle_of: Callable[..., Path]) -> None:
    source = bundle_of("smolvlm", "portable") / "vision_encoder.onnx"
    assert len(open_graph(source).graph.outputs) > 1
    graph = ir.from_proto(ir.serde.onnx.ModelProto.FromString(engine_graph(source, given(source), 64))).graph
    assert [value.name for value in graph.outputs] == ["image_features"]
