from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import find_tables
from quant.weights.gather_blocks import GatherBlocks, GatherRows, reference
from quant.weights.matmul_nbits import MatMulNBits

IDS = np.array([[0, 29, 3], [7, 7, 0]])


@pytest.fixture
def table_of(model_of, rng):
    def table(width: int):
        rows = rng.standard_normal((30, width)).astype(np.float32)
        inputs = {"ids": (ir.DataType.INT64, ["B", "T"])}
        return model_of(inputs, [("Gather", ["t", "ids"], "y", {})], {"t": rows}, ["y"]), rows

    return table


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize("width", [64, 72, 130])
def test_the_operator_equals_its_numpy_reference_exactly(table_of, run, bits: int, block_size: int, width: int) -> None:
    model, rows = table_of(width)
    form = Form(bits, block_size)
    GatherBlocks({"t": form})(model)
    np.testing.assert_array_equal(run(model, ids=IDS)[0], reference(IDS, rows, form))
    assert list(model.graph.initializers) == [f"t.int{bits}", "t.scale"]
    assert model.graph.initializers[f"t.int{bits}"].const_value.nbytes == 30 * width * bits // 8


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.006), (4, 0.1)])
def test_a_row_is_within_a_step_of_the_float_row(rng, bits: int, tolerance: float) -> None:
    table = rng.standard_normal((30, 64)).astype(np.float32)
    found = reference(np.arange(30), table, Form(bits, 32))
    # A step is 1/128 (1/8) of the largest of 32 Gaussian numbers, about 2.2; a uniform error has a step over sqrt(12).
    assert np.sqrt(np.square(found - table).mean()) < tolerance


@pytest.mark.parametrize("bits", [4, 8])
def test_its_bytes_are_those_of_the_tied_output_matrix(table_of, model_of, bits: int) -> None:
    table, rows = table_of(64)
    inputs = {"x": (ir.DataType.FLOAT, ["M", 64])}
    head = model_of(inputs, [("MatMul", ["x", "w"], "y", {})], {"w": np.ascontiguousarray(rows.T)}, ["y"])
    GatherBlocks({"t": Form(bits, 32)})(table)
    MatMulNBits({"w": Form(bits, 32)})(head)
    assert stored(table) == stored(head)


def stored(model: ir.Model) -> list[bytes]:
    return [value.const_value.tobytes() for value in model.graph.initializers.values()]


def test_int8_rows_in_standard_operators_equal_their_reference_exactly(table_of, run) -> None:
    model, rows = table_of(72)
    GatherRows({"t": Form(8)})(model)
    np.testing.assert_array_equal(run(model, ids=IDS)[0], reference(IDS, rows, Form(8)))
    assert {node.domain for node in model.graph} == {""}


def test_onnxruntime_looks_up_codes_and_not_floats(table_of, run) -> None:
    model, _ = table_of(64)
    GatherRows({"t": Form(8)})(model)
    run(model, ids=IDS)
    optimized = run.optimized_graph()
    widest = max(value.const_value.nbytes for value in optimized.initializers.values())
    assert widest == 30 * 64  # a byte per weight: nothing was unpacked at load
    assert find_tables(optimized) == [] or all(table.width == 1 for table in find_tables(optimized))


@pytest.mark.parametrize("scheme", [GatherBlocks, GatherRows])
def test_a_table_that_is_read_twice_is_stored_once(model_of, rng, scheme) -> None:
    rows = rng.standard_normal((30, 64)).astype(np.float32)
    inputs = {name: (ir.DataType.INT64, ["B", "T"]) for name in ("a", "b")}
    nodes = [("Gather", ["t", "a"], "y", {}), ("Gather", ["t", "b"], "z", {})]
    model = model_of(inputs, nodes, {"t": rows}, ["y", "z"])
    scheme({"t": Form(8, 32) if scheme is GatherBlocks else Form(8)})(model)
    assert sum(value.const_value.nbytes >= 30 * 64 for value in model.graph.initializers.values()) == 1


@pytest.mark.parametrize("form", [Form(2, 32), Form(8, 24), Form(8), Form(4, 32, "hqq")])
def test_other_forms_are_refused(form: Form) -> None:
    with pytest.raises(QuantizationError, match="blocks of"):
        GatherBlocks({"t": form})


def test_half_a_byte_at_the_end_of_a_row_is_refused(table_of) -> None:
    with pytest.raises(QuantizationError, match="rows of 33 do not fill whole bytes"):
        GatherBlocks({"t": Form(4, 16)})(table_of(33)[0])


def test_rows_have_one_form() -> None:
    with pytest.raises(QuantizationError, match="one scale per row"):
        GatherRows({"t": Form(8, 32)})
