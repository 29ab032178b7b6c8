from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from quant.layers import find_linears
from quant.weights.matmul_nbits import MatMulNBits, reference
from quant.weights.weight_pass import Form

FLOAT = ir.DataType.FLOAT


@pytest.fixture
def linear_model(model_of, rng):
    def build(num_inputs: int, num_outputs: int) -> ir.Model:
        weights = {"w": rng.standard_normal((num_inputs, num_outputs)).astype(np.float32)}
        return model_of({"x": (FLOAT, ["M", num_inputs])}, [("MatMul", ["x", "w"], "y", {})], weights, ["y"])

    return build


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 8), (33, 7), (200, 5)])
def test_the_operator_equals_its_numpy_reference(
    linear_model, run, rng, bits: int, block_size: int, num_inputs: int, num_outputs: int
) -> None:
    model, form = linear_model(num_inputs, num_outputs), Form(bits, block_size)
    rows = find_linears(model.graph)[0].rows().copy()
    MatMulNBits({"w": form})(model)
    for num_rows in (1, 3, 40):
        x = rng.standard_normal((num_rows, num_inputs)).astype(np.float32)
        (found,) = run(model, x=x)
        expected = reference(x, rows, form)
        # Both round the activations to the same int8 grid; a tie that rounds the other way moves one product by a
        # 254th of its block's range, hence 1e-3 of the norm where a wrong layout would give order 1.
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_float_activations_equal_the_reference_to_rounding(linear_model, run, rng, block_size: int) -> None:
    model, form = linear_model(72, 9), Form(4, block_size)
    rows = find_linears(model.graph)[0].rows().copy()
    MatMulNBits({"w": form}, accuracy_level=0)(model)
    x = rng.standard_normal((5, 72)).astype(np.float32)
    # Sums of 72 float32 products in another order.
    np.testing.assert_allclose(run(model, x=x)[0], reference(x, rows, form, 0), rtol=1e-5, atol=1e-5)


def test_a_weight_read_by_two_layers_is_packed_once(model_of, run, rng) -> None:
    weights = {"w": rng.standard_normal((32, 32)).astype(np.float32)}
    nodes = [("MatMul", ["x", "w"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    model = model_of({"x": (FLOAT, ["M", 32])}, nodes, weights, ["y"])
    MatMulNBits({"w": Form(4, 32)})(model)
    assert sorted(model.graph.initializers) == ["w.int4", "w.scale"]
    assert run(model, x=np.ones((2, 32), np.float32))[0].shape == (2, 32)


@pytest.mark.parametrize(
    ("bits", "block_size", "accuracy_level", "told"),
    [
        (8, 32, 0, "100 times slower"),
        (2, 32, 3, "100 times slower"),
        (2, 16, 4, "no fast CPU kernel"),
        (2, 256, 4, "no fast CPU kernel"),
        (4, 48, 4, "power of two"),
        (4, 8, 4, "power of two"),
        (3, 32, 4, "not 3"),
    ],
)
def test_known_cliffs_are_refused(bits: int, block_size: int, accuracy_level: int, told: str) -> None:
    with pytest.raises(QuantizationError, match=told):
        MatMulNBits({"w": Form(bits, block_size)}, accuracy_level=accuracy_level)


def test_a_layer_that_the_graph_lacks_is_named(linear_model) -> None:
    with pytest.raises(QuantizationError, match="elsewhere"):
        MatMulNBits({"elsewhere": Form(4, 32)})(linear_model(32, 4))
