from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bundle.form import Form
from graphs.layers import find_linears
from graphs.lowering.decoder import lower_decoder
from graphs.store import drop_unused
from quant.weights.table import load_pass

MAX_POSITIONS = 64


@pytest.mark.parametrize("phase", ["any", "step", "prompt"])
@pytest.mark.parametrize("act", ["silu", "gelu"])
def test_a_lowered_decoder_computes_what_it_did(phase: str, act: str, decoder_of, prompt_and_step) -> None:
    """The graph for steps is run on a prompt as well, whose positions follow one another."""
    model = decoder_of(hidden_act=act, qkv_bias=True)
    before = prompt_and_step(model)
    lower_decoder(model, MAX_POSITIONS, phase)
    for found, wanted in zip(prompt_and_step(model), before, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("phase", ["any", "prompt"])
def test_positions_of_a_prompt_may_have_gaps_and_differ_from_row_to_row(
    phase: str, decoder_of, prompt_and_step
) -> None:
    """On an empty cache the CPU's attention reads one position alone where it turns by itself: it must not here."""
    model = decoder_of()
    places = np.array([[3, 4, 9, 10, 20], [0, 30, 31, 2, 7]])
    before = prompt_and_step(model, places=places)
    lower_decoder(model, MAX_POSITIONS, phase)
    for found, wanted in zip(prompt_and_step(model, places=places), before, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_layer_of_a_step_is_ten_operators(decoder_of) -> None:
    """2 norms, qkv, attention, o, gate and up, their split, silu, the product with up, down."""
    few, more = (decoder_of(num_layers=count) for count in (2, 3))
    for model in (few, more):
        lower_decoder(model, MAX_POSITIONS, "step")
    added = Counter(node.op_type for node in more.graph) - Counter(node.op_type for node in few.graph)
    assert added == {
        "SkipSimplifiedLayerNormalization": 2,
        "MatMul": 4,
        "GroupQueryAttention": 1,
        "Split": 1,
        "QuickGelu": 1,
        "Mul": 1,
    }


def test_a_graph_for_prompts_keeps_gate_and_up_apart(decoder_of) -> None:
    """A Split would copy what lies apart already: many rows are many bytes."""
    model = decoder_of()
    lower_decoder(model, MAX_POSITIONS, "prompt")
    found = Counter(node.op_type for node in model.graph)
    assert (found["Split"], found["SkipSimplifiedLayerNormalization"], found["MatMul"]) == (2, 0, 2 * 5 + 1)


def test_a_graph_of_w8a8_keeps_sums_and_norms_apart(decoder_of) -> None:
    """It is chosen for prompts, on whose rows the skip-norm is the slower kernel; a step gains by one product less."""
    model = decoder_of()
    load_pass("w8a8")({layer.name: Form(8) for layer in find_linears(model.graph)})(model)
    lower_decoder(model, MAX_POSITIONS)
    found = Counter(node.op_type for node in model.graph)
    assert (found["Split"], found["SkipSimplifiedLayerNormalization"], found["QuantizeLinear"]) == (4, 0, 2 * 4 + 1)


def test_layers_in_groups_keep_their_lengths_apart(decoder_of, prompt_and_step) -> None:
    model = decoder_of(layer_groups=(0, 1))
    before = prompt_and_step(model)
    lower_decoder(model, MAX_POSITIONS)
    for found, wanted in zip(prompt_and_step(model), before, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_mixture_is_lowered_around_its_experts(decoder_of, experts, prompt_and_step) -> None:
    model = decoder_of(experts=experts)
    before = prompt_and_step(model)
    lower_decoder(model, MAX_POSITIONS, "step")
    found = Counter(node.op_type for node in model.graph)
    assert (found["MoE"], found["RotaryEmbedding"]) == (2, 0)
    for after, wanted in zip(prompt_and_step(model), before, strict=True):
        np.testing.assert_allclose(after, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_rows_of_a_batch_are_as_if_alone(decoder_of, prompt_and_step) -> None:
    """Weights in 8 bits, where an operator could share a scale among rows."""
    model = decoder_of()
    names = {layer.name: Form(8) for layer in find_linears(model.graph)}
    load_pass("w8a8")(names)(model)
    drop_unused(model)
    lower_decoder(model, MAX_POSITIONS)
    both = prompt_and_step(model)
    alone = prompt_and_step(model, only=0)
    for found, wanted in zip(alone, both, strict=True):
        np.testing.assert_array_equal(found, wanted[:1])
