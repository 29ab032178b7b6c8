from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.report import LayerSensitivity
from quant.planning.budget import BitPlan, choose

TERNARY, INT4, INT8 = Form(2, 64, "ternary"), Form(4, 64), Form(8, 64)
FP32_BYTES = 320


def row(layer: str, form: Form, loss: float, weight_bytes: int, **changed: Any) -> LayerSensitivity:
    values = {"component": "decoder", "measure": "kl", "num_samples": 8, "fp32_bytes": FP32_BYTES, **changed}
    return LayerSensitivity(layer=layer, form=form, loss=loss, weight_bytes=weight_bytes, **values)


@st.composite
def tables(draw: st.DrawFn) -> list[LayerSensitivity]:
    """Tables of at most 6 layers in 3 forms, of odd losses too: coarse forms that lose less than fine ones."""
    table = []
    for at in range(draw(st.integers(1, 6))):
        scale = draw(st.integers(1, 4))
        for form, weight_bytes in ((TERNARY, 20), (INT4, 40), (INT8, 80)):
            loss = draw(st.integers(0, 1000)) / 1000
            table.append(row(f"w{at}", form, loss, weight_bytes * scale, fp32_bytes=FP32_BYTES * scale))
    return table


def options_of(table: list[LayerSensitivity]) -> list[list[tuple[float, int]]]:
    """Return (loss, bytes) of every form of each layer, float32 among them."""
    layers: dict[str, list[tuple[float, int]]] = {}
    for each in table:
        layers.setdefault(each.layer, [(0.0, each.fp32_bytes)]).append((each.loss, each.weight_bytes))
    return list(layers.values())


def every_plan(table: list[LayerSensitivity]) -> list[tuple[float, int]]:
    return [(sum(o[0] for o in plan), sum(o[1] for o in plan)) for plan in product(*options_of(table))]


def assert_adds_up(plan: BitPlan, table: list[LayerSensitivity]) -> None:
    rows = {(each.layer, each.form): each for each in table}
    fp32 = {each.layer: each.fp32_bytes for each in table}
    chosen = plan.forms["decoder"]
    assert set(chosen) == set(fp32)
    kept = [fp32[layer] for layer, form in chosen.items() if form is None]
    taken = [rows[layer, form] for layer, form in chosen.items() if form is not None]
    assert plan.weight_bytes == sum(kept) + sum(each.weight_bytes for each in taken)
    assert plan.loss == pytest.approx(sum(each.loss for each in taken), abs=1e-12)


@given(tables(), st.integers(0, 3000))
def test_a_loss_is_kept_within_one_step_of_the_fewest_bytes(table: list[LayerSensitivity], thousandths: int) -> None:
    limit = thousandths / 1000
    plan = choose(table, max_loss=limit)
    assert_adds_up(plan, table)
    assert plan.loss <= limit
    fewest = min(weight_bytes for loss, weight_bytes in every_plan(table) if loss <= limit)
    one_step = max(each[1] for layer in options_of(table) for each in layer)
    assert plan.weight_bytes < fewest + one_step


@given(tables(), st.floats(0, 1))
def test_bytes_are_kept_within_one_step_of_the_least_loss(table: list[LayerSensitivity], share: float) -> None:
    plans = every_plan(table)
    smallest, largest = min(each[1] for each in plans), max(each[1] for each in plans)
    limit = int(smallest + share * (largest - smallest))
    plan = choose(table, max_bytes=limit)
    assert_adds_up(plan, table)
    assert plan.weight_bytes <= limit
    least = min(loss for loss, weight_bytes in plans if weight_bytes <= limit)
    one_step = max(each[0] for layer in options_of(table) for each in layer)
    assert plan.loss <= least + one_step + 1e-9


def test_bits_go_where_a_byte_buys_most() -> None:
    table = [row("deaf", TERNARY, 0.10, 20), row("deaf", INT4, 0.09, 40)]
    table += [row("keen", TERNARY, 0.50, 20), row("keen", INT4, 0.05, 40)]
    assert choose(table, max_bytes=60).forms["decoder"] == {"deaf": TERNARY, "keen": INT4}
    assert choose(table, max_loss=0.16).forms["decoder"] == {"deaf": TERNARY, "keen": INT4}


def test_a_step_that_turns_out_needless_is_taken_back() -> None:
    # "small" is raised first, for it buys more per byte; then "large" alone is enough.
    table = [row("small", INT4, 0.10, 20, fp32_bytes=30), row("large", INT4, 0.90, 40, fp32_bytes=200)]
    assert choose(table, max_loss=0.1).forms["decoder"] == {"small": INT4, "large": None}


def test_no_step_is_taken_past_one_that_did_not_fit() -> None:
    table = [row("w", TERNARY, 0.50, 20), row("w", INT4, 0.10, 100), row("w", INT8, 0.06, 110)]
    assert choose(table, max_bytes=35).forms["decoder"] == {"w": TERNARY}
    assert choose(table, max_bytes=110).forms["decoder"] == {"w": INT8}


def test_the_ladder_ends_in_float32() -> None:
    table = [row("w", TERNARY, 0.5, 20), row("w", INT4, 0.1, 40), row("w", INT8, 0.001, 80)]
    found = [choose(table, max_loss=limit).forms["decoder"]["w"] for limit in (0.6, 0.2, 0.01, 0.0)]
    assert found == [TERNARY, INT4, INT8, None]


def test_layers_of_two_graphs_share_a_limit() -> None:
    table = [row("w", INT4, 0.5, 40), row("w", INT4, 0.1, 40, component="vision_encoder")]
    plan = choose(table, max_bytes=40 + FP32_BYTES)
    assert plan.forms == {"decoder": {"w": None}, "vision_encoder": {"w": INT4}}


def test_a_limit_that_no_plan_keeps_says_what_is_reached() -> None:
    table = [row("a", INT4, 0.5, 40), row("b", INT4, 0.5, 41)]
    with pytest.raises(QuantizationError, match="at most 80 bytes: the smallest forms of the 2 layers take 81"):
        choose(table, max_bytes=80)
    assert choose(table, max_bytes=81).weight_bytes == 81
    for limit in (-0.1, float("nan")):
        with pytest.raises(QuantizationError, match="the least that these forms reach is 0"):
            choose(table, max_loss=limit)


def test_exactly_one_limit_is_kept() -> None:
    for limits in ({}, {"max_bytes": 100, "max_loss": 0.1}):
        with pytest.raises(QuantizationError, match="either max_bytes or max_loss"):
            choose([row("w", INT4, 0.1, 40)], **limits)


def test_losses_of_two_measures_are_not_added() -> None:
    table = [row("w", INT4, 0.1, 40), row("v", INT4, 0.1, 40, measure="cosine_distance")]
    with pytest.raises(QuantizationError, match="holds cosine_distance and kl"):
        choose(table, max_loss=1)
    with pytest.raises(QuantizationError, match="holds no layer"):
        choose([], max_loss=1)


def test_a_row_survives_json() -> None:
    before = row("w", TERNARY, 0.125, 20)
    assert LayerSensitivity.model_validate_json(before.model_dump_json()) == before
