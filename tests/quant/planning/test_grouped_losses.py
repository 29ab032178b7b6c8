"""Losses of a large decoder's layers, from a trial for each group of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from quant.calibration.calibrator import calibrate
from quant.planning.grouped_losses import NUM_DEPTHS, measure_in_groups
from quant.planning.plan import Choice, ComponentPlan, LayerPlan
from quant.planning.sensitivity import Probe, measure_sensitivity, stored
from quant.planning.tied_table import with_head

FINE, PLANNED, OTHER = Form(8, 32, "gptq"), Form(4, 32, "gptq-coded"), Form(4, 16, "gptq")
NUM_LAYERS, WIDTH = 12, 32
NAMES = [f"layers.{at}.mlp.weight" for at in range(NUM_LAYERS)]


@pytest.fixture
def source(model_of: Callable[..., ir.Model], rng: np.random.Generator, array_source: Callable[..., Any]) -> Any:
    """Twelve layers in a row, each adding to what it reads, and a head, on 16 samples."""
    weights = {name: 0.2 * rng.standard_normal((WIDTH, WIDTH)) for name in NAMES}
    weights["head.weight"] = rng.standard_normal((WIDTH, 7))
    nodes = []
    for at, name in enumerate(NAMES):
        nodes += [("MatMul", [f"x{at}" if at else "x", name], f"y{at}", {})]
        nodes += [("Add", [f"x{at}" if at else "x", f"y{at}"], f"x{at + 1}", {})]
    nodes.append(("MatMul", [f"x{NUM_LAYERS}", "head.weight"], "logits", {}))
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    model = model_of({"x": (ir.DataType.FLOAT, ["B", "T", WIDTH])}, nodes, arrays, ["logits"])
    return array_source(model, [0.1 * rng.standard_normal((1, 4, WIDTH)).astype(np.float32) for _ in range(16)])


def grouped(source: Any, forms: dict[str, list[Form]], told: list[str] | None = None, max_seconds: float = 60.0) -> Any:
    inputs = calibrate(source, {"decoder": list(forms)}, grams=True)["decoder"]
    say = (lambda line: None) if told is None else told.append
    table = measure_in_groups(source, "decoder", forms, inputs=inputs, max_seconds=max_seconds, progress=say)
    return table, inputs


def test_what_a_group_loses_is_shared_among_its_layers_and_no_trial_is_made_for_each(source: Any) -> None:
    told: list[str] = []
    table, inputs = grouped(source, {name: [PLANNED] for name in [*NAMES, "head.weight"]}, told)
    assert f"{NUM_DEPTHS + 1} trials of groups of layers on 16 samples" in told[0]
    probe, of_layer = Probe(source, "decoder"), {row.layer: row.loss for row in table}
    for first in range(0, NUM_LAYERS, NUM_LAYERS // NUM_DEPTHS):
        names = NAMES[first : first + NUM_LAYERS // NUM_DEPTHS]
        whole = probe.loss({name: stored(probe.linears[name], PLANNED, inputs)[0] for name in names})
        assert sum(of_layer[name] for name in names) == pytest.approx(whole, rel=1e-6)
        assert all(of_layer[name] > 0 for name in names)


def test_other_forms_are_told_by_their_errors(source: Any) -> None:
    forms = {name: [PLANNED, FINE, OTHER] for name in [*NAMES, "head.weight"]}
    table, inputs = grouped(source, forms)
    found = {(row.layer, row.form): row for row in table}
    alone = measure_sensitivity(source, "decoder", {"head.weight": [PLANNED, FINE, OTHER]}, inputs=inputs)
    for row in alone:
        estimated = found[row.layer, row.form]
        assert (estimated.weight_bytes, estimated.fp32_bytes) == (row.weight_bytes, row.fp32_bytes)
        # Seven outputs lose by the direction of an error as well as by its size
        assert row.loss / 3 < estimated.loss < row.loss * 3
    assert found["head.weight", PLANNED].loss == pytest.approx(alone[0].loss, rel=1e-6)


def test_a_layer_whose_input_was_not_recorded_is_named(source: Any) -> None:
    with pytest.raises(QuantizationError, match=r"what meets layers\.0\.mlp\.weight was not recorded"):
        measure_in_groups(
            source, "decoder", {NAMES[0]: [PLANNED]}, inputs={}, max_seconds=60.0, progress=lambda line: None
        )


def test_a_tied_table_follows_its_head_into_any_form() -> None:
    head = LayerPlan("head.weight", Choice("matmul_nbits", FINE), 64, 100, "", kind="head")
    table = LayerPlan(
        "table.weight", Choice("gather_blocks", PLANNED), 64, 100, "", is_table=True, is_shared=True, head="head.weight"
    )
    plans = {
        "decoder": ComponentPlan("decoder", "int4", "mixed", (head,), None),
        "embed_tokens": ComponentPlan("embed_tokens", "int4", "int4", (table,), None),
    }
    (found,) = with_head(plans)["embed_tokens"].layers
    assert (found.choice, found.is_shared) == (Choice("gather_blocks", FINE), True)
