from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from quant.weights.gather_int8 import GatherInt8, reference
from quant.weights.weight_pass import Form


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize("width", [64, 72])
def test_the_operator_equals_its_numpy_reference_exactly(model_of, run, rng, block_size: int, width: int) -> None:
    table = rng.standard_normal((30, width)).astype(np.float32)
    model = model_of({"ids": (ir.DataType.INT64, ["B", "T"])}, [("Gather", ["t", "ids"], "y", {})], {"t": table}, ["y"])
    GatherInt8({"t": Form(8, block_size)})(model)
    ids = np.array([[0, 29, 3], [7, 7, 0]])
    np.testing.assert_array_equal(run(model, ids=ids)[0], reference(ids, table, block_size))
    assert list(model.graph.initializers) == ["t.int8", "t.scale"]


def test_an_int8_row_is_within_a_step_of_the_float_row(rng) -> None:
    table = rng.standard_normal((30, 64)).astype(np.float32)
    found = reference(np.arange(30), table, 32)
    # A step is a 128th of the largest of 32 Gaussian numbers, about 2.2; a uniform error has a step over sqrt(12).
    assert np.sqrt(np.square(found - table).mean()) < 0.006


@pytest.mark.parametrize("form", [Form(4, 32), Form(8, 24), Form(8)])
def test_other_forms_are_refused(form: Form) -> None:
    with pytest.raises(QuantizationError, match="blocks of"):
        GatherInt8({"t": form})
