"""Products of 8 bits are exact, on CPUs without VNNI as well, whose usual kernel overflows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto, helper, numpy_helper

from bundle import machine
from runtime.graph import Graph
from runtime.onnx_runtime import onnx_runtime
from runtime.providers import session_options
from runtime.settings import RuntimeSettings

ENTRY = "session.x64quantprecision"
ROWS, WIDTH, OUT = 9, 256, 40


def test_loud_products_do_not_overflow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(90, 128, (WIDTH, OUT)).astype(np.int8)
    x = rng.uniform(0.8, 1, (ROWS, WIDTH)).astype(np.float32)
    save(tmp_path / "graph.onnx", codes)
    wanted = np.round(x.astype(np.float64) * 127) @ codes.astype(np.int64) / 127
    (found,) = Graph(tmp_path / "graph.onnx", RuntimeSettings(intra_threads=1)).run({"x": x}).values()
    assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("told", "is_asked"),
    [
        ("flags\t\t: fpu sse4_1 avx avx2 fma\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("flags\t\t: fpu avx2 avx_vnni\n", False),
        ("Features\t: fp asimd asimddp\n", False),
    ],
)
def test_the_kernel_is_asked_for_where_the_usual_one_overflows(
    told: str, is_asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{told}\n")
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    options = session_options(onnx_runtime(), RuntimeSettings())
    if not is_asked:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry(ENTRY)
        return
    assert options.get_session_config_entry(ENTRY) == "1"


def test_a_system_that_does_not_tell_its_cpu_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "none")
    assert not machine.saturates_int8()


def save(path: Path, codes: np.ndarray) -> None:
    """Write x [rows, in] times a matrix of codes, as W8A8 writes it."""
    one, zero = np.ones(codes.shape[1], np.float32), np.zeros(codes.shape[1], np.int8)
    held = {"step": np.float32(1 / 127), "none": np.int8(0), "codes": codes, "steps": one, "nones": zero}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "none"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "none"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["codes", "steps", "nones"], ["weight"], axis=1),
        helper.make_node("MatMul", ["rounded", "weight"], ["y"]),
    ]
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in (("x", codes.shape[0]), ("y", codes.shape[1]))
    ]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "product", shapes[:1], shapes[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
