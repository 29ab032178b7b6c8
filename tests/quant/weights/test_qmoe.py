from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.experts import find_experts
from quant.weights.qmoe import QuantizedExperts, quantize, reference

Array = NDArray[np.float32]
NAME = "layers.0.mlp.experts"
EXPERTS, SIZE, WIDTH = 4, 64, 128
FORMS = [Form(2, 32, "ternary"), Form(2, 64, "ternary"), Form(4, 32), Form(4, 64), Form(8, 32), Form(8, 64)]


@dataclass(frozen=True)
class Mixture:
    """A graph with a router and one MoE, as export writes them, and its numbers."""

    model: ir.Model
    router: Array
    first: Array
    second: Array


@pytest.fixture
def mixture(rng: np.random.Generator, small_graphs: ModuleType) -> Mixture:
    def matrices(rows: int, columns: int) -> Array:
        return np.asarray(rng.standard_normal((EXPERTS, rows, columns)) / np.sqrt(columns), np.float32)

    first, second = matrices(2 * WIDTH, SIZE), matrices(SIZE, WIDTH)
    router = rng.standard_normal((SIZE, EXPERTS)).astype(np.float32) / 4
    model = small_graphs.build_mixture(NAME, router, first, second)
    return Mixture(model, router, first, second)


@pytest.fixture
def x(rng: np.random.Generator) -> Array:
    return rng.standard_normal((24, SIZE)).astype(np.float32)


def dense(
    x: Array, router: Array, first: Array, second: Array, *, per_token: int = 1, is_normalised: bool = False
) -> Array:
    """Every expert for every row in float64, then the chosen times their shares among all or among themselves."""
    scores = np.exp(x.astype(np.float64) @ router)
    shares = scores / scores.sum(axis=1, keepdims=True)
    hidden = np.einsum("enk,tk->ten", first.astype(np.float64), x)
    gate, up = hidden[:, :, 0::2], hidden[:, :, 1::2]
    out = np.einsum("enk,tek->ten", second.astype(np.float64), gate / (1 + np.exp(-gate)) * up)
    kept = np.where(scores >= np.sort(scores, axis=1)[:, [-per_token]], shares, 0)
    weights = kept / kept.sum(axis=1, keepdims=True) if is_normalised else kept
    return np.einsum("ten,te->tn", out, weights)


def relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_the_float_operator_is_the_dense_loop(mixture: Mixture, x: Array, run) -> None:
    expected = dense(x, mixture.router, mixture.first, mixture.second)
    assert relative(run(mixture.model, x=x)[1], expected) < 1e-6


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_operator_is_a_dense_loop_over_its_codes(mixture: Mixture, x: Array, run, form: Form) -> None:
    """Up to its rounding of activations to int8: 1.0 to 1.7 % on normal numbers."""
    restored = [quantize(matrices, form).restored for matrices in (mixture.first, mixture.second)]
    expected = dense(x, mixture.router, *restored)
    QuantizedExperts({NAME: form})(mixture.model)
    assert relative(run(mixture.model, x=x)[1], expected) < 2e-2


@pytest.mark.parametrize("chosen", [{"per_token": 2}, {"per_token": 3, "is_normalised": True}], ids=str)
def test_several_experts_a_row_count_by_their_shares(
    mixture: Mixture, small_graphs: ModuleType, x: Array, run, chosen: dict[str, int]
) -> None:
    numbers = mixture.router, mixture.first, mixture.second
    model = small_graphs.build_mixture(NAME, *numbers, **chosen)
    assert relative(run(model, x=x)[1], dense(x, *numbers, **chosen)) < 1e-6
    form = Form(8, 64)
    QuantizedExperts({NAME: form})(model)
    found = run(model, x=x)[1]
    restored = [quantize(matrices, form).restored for matrices in numbers[1:]]
    assert relative(found, dense(x, mixture.router, *restored, **chosen)) < 2e-2
    assert relative(found, reference(x, x @ mixture.router, *numbers[1:], form, **chosen)) < 2e-3


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_operator_equals_its_numpy_reference(mixture: Mixture, x: Array, run, form: Form) -> None:
    """Also in how activations are rounded: a step that falls the other way moves one of hundreds of terms.

    Tables of sums in int8, which 2 bits are multiplied by, are not in the reference: 1.5 %.
    """
    expected = reference(x, x @ mixture.router, mixture.first, mixture.second, form)
    QuantizedExperts({NAME: form})(mixture.model)
    assert relative(run(mixture.model, x=x)[1], expected) < (2e-2 if form.bits == 2 else 2e-3)


def test_without_router_weights_one_expert_counts_fully(mixture: Mixture, x: Array, run) -> None:
    """The trap: left to itself, the operator weighs by a softmax over the chosen expert alone."""
    form = Form(8, 64)
    expected = reference(x, x @ mixture.router, mixture.first, mixture.second, form)
    QuantizedExperts({NAME: form})(mixture.model)
    (node,) = (node for node in mixture.model.graph if node.op_type == "QMoE")
    node.replace_input_with(14, None)
    scores = np.exp(x @ mixture.router)
    shares = scores.max(axis=1, keepdims=True) / scores.sum(axis=1, keepdims=True)
    assert relative(run(mixture.model, x=x)[1], expected / shares) < 2e-3
    assert shares.mean() < 0.8


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_row_is_the_same_alone_and_beside_a_loud_one(mixture: Mixture, x: Array, run, form: Form) -> None:
    QuantizedExperts({NAME: form})(mixture.model)
    loud = x.copy()
    loud[1:] *= 100
    alone = run(mixture.model, x=x[:1])[1]
    # sums in another order, for other kernels run a single row
    np.testing.assert_allclose(run(mixture.model, x=loud)[1][:1], alone, atol=1e-5, rtol=0)


def test_ternary_experts_keep_their_weights_bit_for_bit(rng: np.random.Generator) -> None:
    """Also where a block holds zeros alone."""
    scales = rng.uniform(0.01, 0.1, (EXPERTS, 1, 1)).astype(np.float32)
    codes = rng.integers(-1, 2, (EXPERTS, SIZE, WIDTH)).astype(np.float32)
    codes[0, 0, :64] = 0
    ternary = codes * scales
    for form in (Form(2, 32, "ternary"), Form(2, 128, "ternary")):
        np.testing.assert_array_equal(quantize(ternary, form).restored, ternary)


def test_two_bit_experts_take_two_bits_and_their_scales(mixture: Mixture) -> None:
    before = mixture.first.nbytes + mixture.second.nbytes
    QuantizedExperts({NAME: Form(2, 64, "ternary")})(mixture.model)
    values = mixture.model.graph.initializers.values()
    after = sum(value.const_value.nbytes for value in values if value.name.startswith(NAME))
    assert after == before * (2 + 32 / 64) / 32


def test_replaced_experts_are_found_no_more(mixture: Mixture) -> None:
    QuantizedExperts({NAME: Form(4, 32)})(mixture.model)
    assert find_experts(mixture.model.graph) == []
    assert {node.op_type for node in mixture.model.graph} == {"MatMul", "Softmax", "QMoE"}
    assert f"{NAME}.gate_up_proj" not in mixture.model.graph.initializers


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Form(2, None, "ternary"), "one scale a row; QMoE is fast in blocks of 32, 64, 128"),
        (Form(3, 32), "QMoE stores 2, 4, 8 bits, not 3"),
        (Form(4, 16), "blocks of 16; QMoE is fast in"),
        (Form(4, 32, "ternary"), "makes codes of 2 bits, not 4"),
        (Form(2, 32, "ternary-gptq"), "ternary-gptq is calibrated"),
    ],
)
def test_forms_that_are_lacking_or_slow_are_refused(form: Form, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        QuantizedExperts({NAME: form})


def test_blocks_that_do_not_divide_are_refused(mixture: Mixture) -> None:
    with pytest.raises(QuantizationError, match="blocks of 128 do not divide 64"):
        QuantizedExperts({NAME: Form(4, 128)})(mixture.model)


@pytest.mark.parametrize("rounding", ["ternary-mean", "ternary-planes"])
def test_roundings_with_more_than_symmetric_codes_are_refused(mixture: Mixture, rounding: str) -> None:
    with pytest.raises(QuantizationError, match="zero points, offsets or two planes; QMoE has none"):
        QuantizedExperts({NAME: Form(2, 32, rounding)})(mixture.model)
