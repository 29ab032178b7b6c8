from __future__ import annotations

from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from graphs.experts import Experts, find_experts

NAME = "layers.0.mlp.experts"
EXPERTS, SIZE, WIDTH = 4, 32, 16


@pytest.fixture
def mixture(rng: np.random.Generator, small_graphs: ModuleType) -> ir.Model:
    sizes = ((SIZE, EXPERTS), (EXPERTS, 2 * WIDTH, SIZE), (EXPERTS, SIZE, WIDTH))
    return small_graphs.build_mixture(NAME, *(rng.standard_normal(size).astype(np.float32) for size in sizes))


def found_in(model: ir.Model) -> Experts:
    (experts,) = find_experts(model.graph)
    return experts


def test_experts_are_found_with_their_sizes_and_inputs(mixture: ir.Model) -> None:
    experts = found_in(mixture)
    assert (experts.name, experts.num_experts, experts.num_inputs, experts.width) == (NAME, EXPERTS, SIZE, WIDTH)
    assert (experts.input.name, experts.logits.name) == ("x", "s")
    assert [matrices.shape for matrices in experts.matrices()] == [(EXPERTS, 2 * WIDTH, SIZE), (EXPERTS, SIZE, WIDTH)]


def test_finding_experts_does_not_read_their_numbers(mixture: ir.Model) -> None:
    """They are most of a model, and a weight of a checkpoint is converted anew whenever it is read."""

    def fail() -> ir.Tensor:
        raise AssertionError("the numbers were read")

    experts = found_in(mixture)
    for weight in (experts.first, experts.second):
        weight.const_value = ir.LazyTensor(fail, ir.DataType.FLOAT, weight.shape, name=weight.name)
    assert found_in(mixture).width == WIDTH


def test_ternary_experts_are_told_from_others(mixture: ir.Model) -> None:
    """A scale of its own for each matrix of the checkpoint, gate and up apart."""
    experts = found_in(mixture)
    assert not experts.is_ternary
    for weight, scale, gate_scale in ((experts.first, 0.5, 3), (experts.second, 0.1, 1)):
        rows = np.sign(weight.const_value.numpy()) * np.float32(scale)
        rows[:, 0::2] *= gate_scale
        rows[1] *= 7
        rows[2] = 0
        weight.const_value = ir.tensor(rows, name=weight.name)
    assert experts.is_ternary
    experts.second.const_value.numpy()[1, 2, 3] *= 2
    assert not experts.is_ternary


def test_a_scale_that_alternates_within_the_second_matrix_is_not_ternary(mixture: ir.Model) -> None:
    experts = found_in(mixture)
    for weight in (experts.first, experts.second):
        weight.const_value = ir.tensor(np.sign(weight.const_value.numpy()), name=weight.name)
    assert experts.is_ternary
    experts.second.const_value.numpy()[:, 0::2] *= 2
    assert not experts.is_ternary


def test_experts_without_logits_are_refused(mixture: ir.Model) -> None:
    experts = found_in(mixture)
    experts.node.replace_input_with(1, None)
    with pytest.raises(QuantizationError, match="lacks input 1; export the checkpoint again"):
        _ = experts.logits
