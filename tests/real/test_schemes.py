"""The default schemes hold where channels are really loud; the shipped models have none that matter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bundle.directory import open_bundle
from quant.calibration.feeds import FeedSource, spread
from quant.planning.draft import Options, make_draft
from quant.planning.refinement import refine
from quant.quality.evaluation import Evaluation, turns_of
from quant.quality.gate import LIMITS
from quant.quality.measures import clear_choices, kl_divergences, top1_agreements
from quant.quantizer import quantize_bundle
from quant.samples.built_in import Half, built_in_samples
from runtime.decoder import Logits
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import VisionLanguageRunner

pytestmark = [pytest.mark.real, pytest.mark.slow]


@dataclass(frozen=True)
class Fed:
    """A text that is fed to models.

    Attributes:
        prompt: Its question.
        ids: Of its answer.
        logits: [A, V], fp32's.
    """

    prompt: FilledPrompt
    ids: list[int]
    logits: Logits


@dataclass(frozen=True)
class Losses:
    """What a variant loses on texts.

    Attributes:
        kl_mean: In nats a token.
        clear_agreement: Share of the tokens at which both choose the same, where fp32 is clear.
    """

    kl_mean: float
    clear_agreement: float


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


@pytest.fixture(scope="module")
def fed(bundle: Path) -> list[Fed]:
    """Texts that nothing is fitted to, and what fp32 says where they are fed to it."""
    runner = VisionLanguageRunner(open_bundle(bundle, allow_ungated=True), whole_answers=True)
    questions = texts(bundle, "evaluation", 8).questions
    prompts = [(runner.prompt(turns_of(each), []), runner.answer_ids(each.answer)) for each in questions]
    return [Fed(prompt, ids, runner.answer_logits(prompt, ids)) for prompt, ids in prompts]


def losses_of(folder: Path, fed: Sequence[Fed]) -> Losses:
    """Return what a variant loses on texts, fed to it token by token as it serves; its folder is deleted.

    A gate's own measure without replies, which take most of a gate's time.
    """
    runner = VisionLanguageRunner(open_bundle(folder, allow_ungated=True))
    pairs = [(text.logits, runner.answer_logits(text.prompt, text.ids)) for text in fed]
    clear = np.concatenate([clear_choices(expected) for expected, _ in pairs])
    agrees = np.concatenate([top1_agreements(*pair) for pair in pairs])
    shutil.rmtree(folder)
    return Losses(float(np.concatenate([kl_divergences(*pair) for pair in pairs]).mean()), agrees[clear].mean())


def test_int8_loses_a_third_at_most_of_what_rounding_to_nearest_loses(
    bundle: Path, fed: list[Fed], scratch: Path
) -> None:
    fitted, losses = texts(bundle, "calibration", 8), {}
    for weights in ("int8", "int8-rtn"):
        quantize_bundle(bundle, scratch / weights, weights=weights, calibration=fitted)
        losses[weights] = losses_of(scratch / weights, fed).kl_mean
    assert losses["int8"] < losses["int8-rtn"] / 3, losses
    assert losses["int8"] < 0.02, losses


def test_int4_loses_a_third_at_most_of_what_rounding_to_nearest_loses(
    bundle: Path, fed: list[Fed], scratch: Path
) -> None:
    """By its default form on the CPU: codes for scales, and loud inputs stored twice."""
    fitted, losses = texts(bundle, "calibration", 8), {}
    for weights in ("int4", "int4-rtn"):
        made = quantize_bundle(bundle, scratch / weights, weights=weights, calibration=fitted)
        if weights == "int4":
            assert "doubled" in made.components["decoder"].detail
        losses[weights] = losses_of(scratch / weights, fed).kl_mean
    assert losses["int4"] < losses["int4-rtn"] / 3, losses
    assert losses["int4"] < 0.2, losses


def test_a_cache_of_int8_keeps_its_limits_and_of_int4_loses_more(bundle: Path, fed: list[Fed], scratch: Path) -> None:
    """Float32 weights, so that nothing else is lost."""
    fitted, losses = texts(bundle, "calibration", 8), {}
    for scheme in ("int8", "int4"):
        options = Options(kv_cache=scheme)
        quantize_bundle(bundle, scratch / scheme, weights="fp32", options=options, calibration=fitted)
        losses[scheme] = losses_of(scratch / scheme, fed[:4])
    limits = LIMITS["int8"]
    assert losses["int8"].kl_mean <= limits["kl_mean"].value < losses["int4"].kl_mean, losses
    assert losses["int8"].clear_agreement >= limits["clear_agreement"].value, losses
