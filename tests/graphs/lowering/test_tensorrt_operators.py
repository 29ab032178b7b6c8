"""Verdicts on our own graphs, by what TensorRT's documents say of its versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bundle.directory import read_manifest
from bundle.errors import SettingsError
from bundle.form import Form
from graphs.layers import find_linears
from graphs.lowering.tensorrt_operators import Verdict, Version, judge_graph, missing, read_version
from graphs.store import open_graph, save_graph
from quant.weights.qdq_int4 import DequantizedInt4


def judged(folder: Path, name: str, version: Version) -> Verdict:
    return judge_graph(folder / f"{name}.onnx", read_manifest(folder).always_given(name), version)


NEW = {"Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization"}


@pytest.mark.parametrize(
    ("version", "form", "lacking"),
    [
        ("10.3", "plain", {"opset 24 (it reads 20)"} | NEW),
        ("10.13", "plain", {"opset 24 (it reads 20)"} | NEW),
        ("10.14", "plain", {"opset 24 (it reads 20)"} | NEW - {"Attention"}),
        ("10.15", "standard", set()),
        ("11", "standard", set()),
    ],
)
def test_a_decoder_is_taken_or_written_plainly(
    bundle_of: Callable[..., Path], version: str, form: str, lacking: set[str]
) -> None:
    verdict = judged(bundle_of("smolvlm", "portable"), "decoder", read_version(version))
    assert (verdict.form, set(verdict.lacking)) == (form, lacking)


@pytest.mark.parametrize("family", ["smolvlm", "clip", "siglip", "llava-clip-llama"])
def test_every_graph_of_every_family_has_a_form_for_every_version(bundle_of: Callable[..., Path], family: str) -> None:
    folder = bundle_of(family, "portable")
    for name in read_manifest(folder).components:
        assert judged(folder, name, (10, 1)).form == "plain"
        assert judged(folder, name, (10, 15)).form == "standard"


def test_weights_of_4_bits_have_no_form_before_10_15(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    model = open_graph(bundle_of("smolvlm", "portable") / "vision_encoder.onnx")
    linears = [linear for linear in find_linears(model.graph) if linear.num_inputs % 32 == 0]
    DequantizedInt4({linear.name: Form(4, 32) for linear in linears})(model)
    save_graph(model, tmp_path / "vision_encoder.onnx")
    verdict = judge_graph(tmp_path / "vision_encoder.onnx", ["image_features"], (10, 3))
    assert verdict.form is None
    assert "take int8, int8-static or fp16" in verdict.reason
    assert judge_graph(tmp_path / "vision_encoder.onnx", ["image_features"], (10, 15)).form == "standard"


def test_operators_of_onnx_runtime_have_no_form_anywhere(smolvlm_bundle: Path) -> None:
    verdict = judged(smolvlm_bundle, "decoder", (11, 0))
    assert verdict.form is None
    assert "GroupQueryAttention of com.microsoft" in verdict.lacking
    assert "--dialect portable" in verdict.reason


@pytest.mark.parametrize(("text", "version"), [("10.3", (10, 3)), ("11", (11, 0)), ("10.15.1.29", (10, 15))])
def test_versions_are_read(text: str, version: tuple[int, int]) -> None:
    assert read_version(text) == version


@pytest.mark.parametrize("text", ["", "ten", "10.x", "8.6", "-1"])
def test_other_texts_are_no_versions(text: str) -> None:
    with pytest.raises(SettingsError, match=r"10\.3|10\.1"):
        read_version(text)


@pytest.mark.parametrize(("mode", "lacking"), [("linear", ()), ("cubic", ("Resize in mode cubic",))])
def test_modes_of_resize_are_those_of_the_tables(model_of: Any, mode: str, lacking: tuple[str, ...]) -> None:
    nodes = [("Resize", ["x", "none", "none", "sizes"], "y", {"mode": mode})]
    weights = {"none": np.zeros(0, np.float32), "sizes": np.array([1, 1, 8, 8])}
    model = model_of({"x": (ir.DataType.FLOAT, [1, 1, 4, 4])}, nodes, weights, ["y"], opset=20)
    assert tuple(missing(model, (10, 3))) == lacking


def test_operators_inside_a_loop_are_looked_at() -> None:
    body = ir.Graph([ir.val("a")], [], nodes=[], name="body")
    norm = ir.node("RMSNormalization", [body.inputs[0]], {})
    body.append(norm)
    body.outputs.append(norm.outputs[0])
    x = ir.val("x")
    loop = ir.node("Scan", [x], {"body": body, "num_scan_inputs": 1})
    graph = ir.Graph([x], [loop.outputs[0]], nodes=[loop], opset_imports={"": 20}, name="graph")
    model = ir.Model(graph, ir_version=10)
    assert list(missing(model, (10, 3))) == ["RMSNormalization"]
    assert not list(missing(model, (10, 15)))
