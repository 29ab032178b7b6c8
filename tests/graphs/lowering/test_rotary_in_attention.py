from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from export.rope import RopeConfig
from graphs.lowering.last_queries import drop_last_queries
from graphs.lowering.packed_attention import pack_attention
from graphs.lowering.parallel_layers import join_attention_layers
from graphs.lowering.rotary_in_attention import table_bytes, turn_inside_attention
from graphs.store import drop_unused

MAX_POSITIONS = 64
LLAMA3 = RopeConfig("llama3", 10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=16)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("rope", [RopeConfig("default", 10_000.0), LLAMA3], ids=lambda rope: rope.kind)
@pytest.mark.parametrize("is_packed", [False, True], ids=["apart", "packed"])
def test_attention_turns_by_position_and_not_by_row(
    rope: RopeConfig, is_packed: bool, decoder_of, prompt_and_step
) -> None:
    """The runs stand seven places further on than their rows."""
    model = decoder_of(rope=rope)
    before = prompt_and_step(model)
    drop_last_queries(model)
    if is_packed:
        assert join_attention_layers(model.graph) == 4
    assert turn_inside_attention(model.graph, MAX_POSITIONS) == 2
    assert pack_attention(model.graph) == (2 if is_packed else 0)
    drop_unused(model)
    model.graph.sort()
    assert not {"RotaryEmbedding", "Cos", "Sin", "Split"} & set(operators(model))
    after = prompt_and_step(model)
    for found, wanted in zip(after, before, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    elsewhere = prompt_and_step(model, shift=8)
    assert any(np.abs(found - wanted).max() > 1e-2 for found, wanted in zip(elsewhere, after, strict=True))


def test_tables_are_stored_once_for_all_layers_and_end_at_the_last_position(decoder_of) -> None:
    model = decoder_of()
    turn_inside_attention(model.graph, MAX_POSITIONS)
    tables = [value.const_value for name, value in model.graph.initializers.items() if name.endswith((".cos", ".sin"))]
    assert [tuple(table.shape) for table in tables] == [(MAX_POSITIONS, 8)] * 2
    assert sum(table.nbytes for table in tables) == table_bytes(MAX_POSITIONS, 16)


def set_attribute(name: str, value: int) -> Any:
    def change(model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == "RotaryEmbedding":
                node.attributes[name] = ir.AttrInt64(name, value)

    return change


def scale_keys(model: ir.Model) -> None:
    for node in [node for node in model.graph if node.op_type == "GroupQueryAttention"]:
        scaled = ir.node("Neg", [node.inputs[1]], outputs=[ir.Value(name=f"{node.name}.scaled")])
        model.graph.insert_before(node, scaled)
        node.replace_input_with(1, scaled.outputs[0])


def three_axes(model: ir.Model) -> None:
    positions = next(value for value in model.graph.inputs if value.name == "position_ids")
    positions.shape = ir.Shape([3, "B", "T"])


@pytest.mark.parametrize(
    "change",
    [set_attribute("interleaved", 1), set_attribute("rotary_embedding_dim", 8), scale_keys, three_axes],
    ids=["by neighbours", "in part", "a node between", "three axes"],
)
def test_what_attention_cannot_turn_stays_outside(change: Any, decoder_of) -> None:
    model = decoder_of()
    change(model)
    before = operators(model)
    assert turn_inside_attention(model.graph, MAX_POSITIONS) == 0
    assert operators(model) == before


def test_heads_that_are_no_multiple_of_16_are_turned_outside(decoder_of) -> None:
    """ONNX Runtime refuses them inside when the graph runs."""
    model = decoder_of(head_size=24)
    assert turn_inside_attention(model.graph, MAX_POSITIONS) == 0
    assert table_bytes(MAX_POSITIONS, 24) == 0


def test_a_table_of_too_many_positions_is_not_made(decoder_of) -> None:
    assert turn_inside_attention(decoder_of().graph, 1 << 24) == 0
