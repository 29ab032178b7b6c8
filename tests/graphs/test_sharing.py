from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bundle.form import Form
from graphs.sharing import share_weights
from graphs.store import save_graph
from quant.weights.gather_blocks import GatherBlocks
from quant.weights.matmul_nbits import MatMulNBits

VOCABULARY, WIDTH = 2048, 64
FORM = Form(4, 32)


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture
def folder(tmp_path: Path, model_of, rng) -> Path:
    """Hold head.onnx and table.onnx of one tied matrix in 4 bits, the table with a weight of its own."""
    rows = rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    head = model_of(
        {"x": (ir.DataType.FLOAT, ["M", WIDTH])}, [("MatMul", ["x", "w"], "y", {})], {"w": rows.T.copy()}, ["y"]
    )
    own = rng.standard_normal((600, WIDTH)).astype(np.float32)
    nodes = [("Gather", ["t", "ids"], "rows", {}), ("MatMul", ["rows", "own"], "y", {})]
    weights = {"t": rows, "own": own.T.copy()}
    table = model_of({"ids": (ir.DataType.INT64, ["M"])}, nodes, weights, ["y"])
    MatMulNBits({"w": FORM})(head)
    GatherBlocks({"t": FORM})(table)
    save_graph(head, tmp_path / "head.onnx")
    save_graph(table, tmp_path / "table.onnx")
    return tmp_path


def test_a_tied_matrix_is_stored_once_and_both_graphs_answer_as_before(folder: Path, rng) -> None:
    x, ids = rng.standard_normal((3, WIDTH)).astype(np.float32), np.array([0, 5, VOCABULARY - 1])
    head_before = session(folder / "head.onnx").run(None, {"x": x})[0]
    table_before = session(folder / "table.onnx").run(None, {"ids": ids})[0]
    before = (folder / "table.onnx.data").stat().st_size
    saved = share_weights(folder, ["head.onnx", "table.onnx"])
    codes, scales = VOCABULARY * WIDTH // 2, VOCABULARY * WIDTH // 32 * 4
    assert saved == {"table.onnx": codes}
    assert scales < 1 << 16  # the scales here are too small to be worth it
    assert (folder / "table.onnx.data").stat().st_size <= before - codes
    np.testing.assert_array_equal(session(folder / "head.onnx").run(None, {"x": x})[0], head_before)
    np.testing.assert_array_equal(session(folder / "table.onnx").run(None, {"ids": ids})[0], table_before)


def test_a_graph_whose_every_weight_lies_elsewhere_has_no_data_of_its_own(folder: Path, model_of, rng) -> None:
    for name in ("a", "b"):
        rows = np.arange(1 << 16, dtype=np.float32).reshape(-1, WIDTH)
        inputs = {"ids": (ir.DataType.INT64, ["M"])}
        save_graph(model_of(inputs, [("Gather", ["t", "ids"], "y", {})], {"t": rows}, ["y"]), folder / f"{name}.onnx")
    assert share_weights(folder, ["a.onnx", "b.onnx"]) == {"b.onnx": 4 << 16}
    assert not (folder / "b.onnx.data").exists()
    found = session(folder / "b.onnx").run(None, {"ids": np.array([3])})[0]
    np.testing.assert_array_equal(found, np.arange(3 * WIDTH, 4 * WIDTH, dtype=np.float32)[None])


def test_equal_sizes_with_other_bytes_are_not_shared(folder: Path, model_of) -> None:
    for name, first in (("a", 0), ("b", 1)):
        rows = np.arange(first, first + (1 << 16), dtype=np.float32).reshape(-1, WIDTH)
        inputs = {"ids": (ir.DataType.INT64, ["M"])}
        save_graph(model_of(inputs, [("Gather", ["t", "ids"], "y", {})], {"t": rows}, ["y"]), folder / f"{name}.onnx")
    written = (folder / "b.onnx").read_bytes()
    assert share_weights(folder, ["a.onnx", "b.onnx"]) == {}
    assert (folder / "b.onnx").read_bytes() == written
