"""Products of 8-bit codes are whole numbers on every processor, on those that sum pairs in 16 bits as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bundle.machine import sums_codes_exactly
from runtime.graph import Graph
from runtime.onnx_runtime import onnx_runtime
from runtime.openvino_graph import OpenVinoGraph, has_openvino
from runtime.providers import session_options
from runtime.settings import RuntimeSettings

ROWS, INNER, COLUMNS = 8, 256, 64
STEP = np.float32(1 / 127)
SETTINGS = RuntimeSettings(intra_threads=1)


@pytest.fixture
def loud() -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Inputs and codes whose pairs of products are beyond 16 bits: full codes of one sign."""
    chance = np.random.default_rng(7)
    inputs = chance.integers(100, 128, (ROWS, INNER)).astype(np.float32) * STEP
    return inputs, chance.integers(100, 128, (INNER, COLUMNS)).astype(np.int8)


def product(folder: Path, codes: NDArray[np.int8], kind: type[np.integer], times: int = 1) -> Path:
    """Write inputs that are rounded to codes of a kind, times codes of weights, as variants in 8 bits have it.

    With `times` 2 two products read the same codes, and the mean of both is given.
    """
    nodes = []
    for number in map(str, range(times)):
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["rounded" + number]),
            helper.make_node("DequantizeLinear", ["rounded" + number, "step", "zero"], ["a" + number]),
            helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["b" + number], axis=1),
            helper.make_node("MatMul", ["a" + number, "b" + number], ["y" + number]),
        ]
    nodes.append(helper.make_node("Mean", [f"y{number}" for number in range(times)], ["y"]))
    held = {
        "step": np.array(STEP),
        "zero": np.array(0 if kind is np.int8 else 128, kind),
        "codes": codes,
        "scales": np.full(COLUMNS, STEP),
        "zeros": np.zeros(COLUMNS, np.int8),
    }
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, COLUMNS])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    path = folder / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_sums_of_full_codes_are_not_cut_off(
    engine: str, kind: type[np.integer], loud: tuple[NDArray[np.float32], NDArray[np.int8]], tmp_path: Path
) -> None:
    if engine == "openvino" and not has_openvino():
        pytest.skip("OpenVINO is not installed")
    inputs, codes = loud
    path = product(tmp_path, codes, kind)
    graph = Graph(path, SETTINGS) if engine == "onnxruntime" else OpenVinoGraph(path, SETTINGS, is_exact=False)
    wanted = inputs.astype(np.float64) @ (codes * np.float64(STEP))
    # codes of inputs are exact; float32 sums, and bfloat16 where OpenVINO multiplies in it
    assert_allclose(graph.run({"x": inputs})["y"], wanted, rtol=1e-2)


def test_codes_that_two_products_share_are_not_cut_off_either(
    loud: tuple[NDArray[np.float32], NDArray[np.int8]], tmp_path: Path
) -> None:
    inputs, codes = loud
    graph = Graph(product(tmp_path, codes, np.int8, times=2), SETTINGS)
    assert_allclose(graph.run({"x": inputs})["y"], inputs.astype(np.float64) @ (codes * np.float64(STEP)), rtol=1e-2)


def test_a_processor_tells_by_its_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    older, newer = tmp_path / "older", tmp_path / "newer"
    older.write_text("processor\t: 0\nflags\t\t: fma avx avx2 avx512f\n")
    newer.write_text("processor\t: 0\nflags\t\t: fma avx2 avx_vnni\n")
    assert not sums_codes_exactly(older)
    assert sums_codes_exactly(newer)
    assert not sums_codes_exactly(tmp_path / "absent")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert sums_codes_exactly(older)


@pytest.mark.parametrize("is_exact", [True, False])
def test_only_processors_that_cut_sums_off_take_the_slower_kernel(
    is_exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.providers.sums_codes_exactly", lambda: is_exact)
    options = session_options(onnx_runtime(), SETTINGS)
    try:
        asked = options.get_session_config_entry("session.x64quantprecision")
    except RuntimeError:
        asked = None
    assert asked == (None if is_exact else "1")
