"""The default schemes hold where channels are really loud; the shipped models have none that matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bundle.directory import open_bundle
from bundle.report import read_report
from quant.calibration.feeds import FeedSource, spread
from quant.planning.draft import Options, make_draft
from quant.planning.refinement import refine
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from quant.samples.built_in import Half, built_in_samples

pytestmark = [pytest.mark.real, pytest.mark.slow]

NO_LIMITS = {
    "accuracy_loss_points/high": 100.0,
    "accuracy_loss_points/low": 100.0,
    "kl_mean": 9.0,
    "clear_agreement": 0.0,
}


def texts(bundle: Path, half: Half, most: int) -> Evaluation:
    """Return some of the built-in texts, of every kind."""
    samples = built_in_samples(open_bundle(bundle, allow_ungated=True), half)
    questions = [question for question in samples.questions if not question.images]
    return replace(samples, questions=spread(questions, most))


def test_calibration_finds_the_massive_channels_of_down_proj(bundle: Path) -> None:
    parent = open_bundle(bundle, allow_ungated=True)
    draft = make_draft(parent, "int8", Options(), lambda line: None)
    told: list[str] = []
    plan = refine(draft, FeedSource(parent, texts(bundle, "calibration", 6)), told.append).plans["decoder"]
    (found,) = [line for line in told if line.startswith("decoder: rotated")]
    assert "layers.11.mlp.down_proj" in found  # 1,500 to 1,700 times the median, whatever the texts
    assert plan.is_rotated
    counts = {layer.name: layer.choice.form.float_inputs for layer in plan.layers if layer.choice.form}
    for layer in (11, 28):
        name = f"model.text_model.layers.{layer}.mlp.down_proj.weight"
        assert name in plan.turned
        assert counts[name] >= 64
    assert not any(counts[name] for name in counts if name.endswith(("q_proj.weight", "gate_proj.weight")))


def test_int8_loses_a_third_at_most_of_what_rounding_to_nearest_loses(bundle: Path, scratch: Path) -> None:
    fitted, measured = texts(bundle, "calibration", 16), texts(bundle, "evaluation", 12)
    losses = {}
    for weights in ("int8", "int8-rtn"):
        folder = scratch / weights
        quantize_bundle(bundle, folder, weights=weights, calibration=fitted, evaluation=measured, limits=NO_LIMITS)
        forced = read_report(open_bundle(folder, allow_ungated=True)).teacher_forced
        assert forced is not None
        losses[weights] = forced.kl_mean
    assert losses["int8"] < losses["int8-rtn"] / 3, losses
    assert losses["int8"] < 0.02, losses


def test_a_cache_of_int8_passes_its_gate_and_of_int4_loses_more(bundle: Path, scratch: Path) -> None:
    """Float32 weights, so that nothing else is lost."""
    fitted, measured = texts(bundle, "calibration", 16), texts(bundle, "evaluation", 12)
    losses = {}
    for scheme in ("int8", "int4"):
        folder, options = scratch / f"kv-{scheme}", Options(kv_cache=scheme)
        limits = NO_LIMITS if scheme == "int4" else {name: NO_LIMITS[name] for name in list(NO_LIMITS)[:2]}
        manifest = quantize_bundle(
            bundle,
            folder,
            weights="fp32",
            options=options,
            calibration=fitted,
            evaluation=measured,
            limits=limits,
            overwrite=True,
        )
        assert not manifest.has_failed_gate
        forced = read_report(open_bundle(folder)).teacher_forced
        assert forced is not None
        losses[scheme] = forced.kl_mean
    assert losses["int8"] < 0.02 < losses["int4"], losses
