from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from quant.weights.bnb4 import Bnb4, quantize_flat, reference, weights

FLOAT = ir.DataType.FLOAT
KINDS = ["nf4", "fp4"]
SIZES = [(20, 64), (7, 100), (3, 33), (64, 256)]  # N, K; blocks that end inside a row, and an odd number of codes


# bitsandbytes 0.50 decodes some matrices wrongly on a CPU where a block is longer than a row, so none is here;
# its codes are right there too, as ONNX Runtime's own encoder and operator agree.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "block_size"), [(20, 64, 64), (7, 100, 64), (64, 256, 64), (64, 256, 128)]
)
def test_our_decoding_is_that_of_bitsandbytes(rng, kind, num_outputs: int, num_inputs: int, block_size: int) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    rows = rng.standard_normal((num_outputs, num_inputs)).astype(np.float32)
    packed, state = quantize_4bit(torch.from_numpy(rows), blocksize=block_size, quant_type=kind)
    expected = dequantize_4bit(packed, state).numpy()
    found = weights(*quantize_flat(rows, kind, block_size), kind, block_size, rows.shape)
    # One float32 product per weight; levels such as 1/192 are written as its nearest float32 or the next.
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SIZES)
@pytest.mark.parametrize("num_rows", [1, 5])
def test_the_operator_equals_its_numpy_reference(
    model_of, run, rng, kind, num_outputs: int, num_inputs: int, num_rows: int
) -> None:
    rows = rng.standard_normal((num_outputs, num_inputs)).astype(np.float32)
    x = rng.standard_normal((num_rows, num_inputs)).astype(np.float32)
    nodes = [("MatMul", ["x", "w"], "y", {})]
    model = model_of({"x": (FLOAT, ["M", num_inputs])}, nodes, {"w": np.ascontiguousarray(rows.T)}, ["y"])
    Bnb4({"w": Form(4, 64, kind)})(model)
    assert [node.op_type for node in model.graph] == ["MatMulBnb4"]
    # Sums of up to 256 float32 products in another order.
    np.testing.assert_allclose(run(model, x=x)[0], reference(x, rows, kind, 64), rtol=1e-5, atol=1e-5)


def test_nf4_is_finer_than_fp4_on_gaussian_weights(rng) -> None:
    rows = rng.standard_normal((256, 256)).astype(np.float32)
    error = {
        kind: np.square(weights(*quantize_flat(rows, kind, 64), kind, 64, rows.shape) - rows).mean() for kind in KINDS
    }
    # The levels of NF4 are quantiles of a Gaussian; near 0.009 and 0.015 of the variance in blocks of 64.
    assert error["nf4"] < 0.0095 < 0.013 < error["fp4"]


def test_a_bias_is_added_after_the_product(model_of, run, rng) -> None:
    arrays = {"w": rng.standard_normal((64, 8)).astype(np.float32), "b": rng.standard_normal(8).astype(np.float32)}
    model = model_of({"x": (FLOAT, ["M", 64])}, [("Gemm", ["x", "w", "b"], "y", {})], arrays, ["y"])
    x = rng.standard_normal((3, 64)).astype(np.float32)
    Bnb4({"w": Form(4, 64, "nf4")})(model)
    expected = reference(x, np.ascontiguousarray(arrays["w"].T), "nf4", 64) + arrays["b"]
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [Form(8, 64, "nf4"), Form(4, 32, "nf4"), Form(4, None, "nf4"), Form(4, 64)])
def test_other_forms_are_refused(form: Form) -> None:
    with pytest.raises(QuantizationError, match="nf4 or fp4 with 4 bits in blocks of"):
        Bnb4({"w": form})


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch, rng) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(QuantizationError, match=r"pip install -e '\.\[quant\]'"):
        quantize_flat(rng.standard_normal((4, 64)).astype(np.float32), "nf4", 64)
