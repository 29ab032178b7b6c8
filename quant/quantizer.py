"""A bundle made smaller: planned, rewritten, measured, judged, and put in place whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from bundle.directory import Bundle, open_bundle, seal, write_aside
from bundle.errors import QuantizationError
from bundle.manifest import Manifest, Target
from bundle.report import (
    write_report,
)
from graphs.dialect import portable_where_standard
from graphs.lowering.coded_cache import CodedCache
from quant.calibration.feeds import FeedSource, shows_images
from quant.kv_cache.refusals import require_operators
from quant.kv_cache.scales import fit_cache
from quant.planning.draft import Draft, Options, experimental, fit_bits, make_draft
from quant.planning.planner import require_float
from quant.planning.recipes import RECIPES
from quant.planning.refinement import refine, rotated_parent
from quant.quality.evaluation import Evaluation, Measured, images_of
from quant.quality.gate import LIMITS, MIXED, foreign_samples, judge_all, measure, require_measurable, unmeasured_gates
from quant.quality.pairs import asked_of
from quant.quality.parity import canary_parity
from quant.reporting import report_of
from quant.writing import Job, lowering_of, write_variant
from runtime.operators import runs_here
from runtime.settings import RuntimeSettings, provider_of

Say = Callable[[str], None]
_DEFAULTS = Options()


def quantize_bundle(
    bundle: Path,
    output: Path,
    *,
    weights: str,
    options: Options = _DEFAULTS,
    calibration: Evaluation | None = None,
    evaluation: Evaluation | None = None,
    limits: Mapping[str, float] | None = None,
    overwrite: bool = False,
    progress: Say | None = None,
    show: Callable[[Draft], None] | None = None,
) -> Manifest:
    """Write a smaller variant of an fp32 bundle and return its manifest.

    Weights are read through memory maps and quantized a layer at a time, so that a graph costs about its quantized
    size in memory. `output` appears whole or not at all.

    Args:
        bundle: The parent.
        output: The variant's folder.
        weights: NAME[,component=NAME...] of `quant.planning.recipes.RECIPES`.
        options: Blocks, profile, target, whether layers are timed, and what the cache holds.
        calibration: Samples for recipes that fit weights to inputs.
        evaluation: Samples to measure quality on; without them only the canary is compared, and nothing is gated.
        limits: Gates' limits set by the user, as `quant.quality.gate.parse_limits` returns them.
        overwrite: Replace a bundle that stands at `output`.
        progress: Called with a line at each step.
        show: Called with the plan before it is carried out.

    Raises:
        QuantizationError: Weights or options that cannot be had, samples that lack, or a parent that is quantized.
        BundleError: The parent is not whole, or `output` exists.
    """
    started = time.monotonic()
    say = progress or (lambda line: None)
    if output.resolve() == bundle.resolve():
        raise QuantizationError(f"{output} is the bundle to be quantized; choose another -o")
    parent = open_bundle(bundle, allow_ungated=True)  # a quantized parent has an error of its own
    require_float(parent.manifest)
    if options.target == "tensorrt":
        parent = portable_where_standard(parent)
    settings = _measured_on(options)
    if note := _elsewhere(options.target, settings):
        say(note)
    with write_aside(output, overwrite=overwrite) as aside:
        draft = make_draft(parent, weights, options, say)
        _require_calibration(draft, options, calibration)
        if evaluation is not None:
            _require_measurable(evaluation, parent, draft, options, limits)
        if calibration is not None:
            draft = refine(draft, FeedSource(parent, calibration), say, target=options.target)
        with rotated_parent(parent, draft, aside) as source:
            if calibration is not None:
                draft = fit_bits(draft, FeedSource(source, calibration), options, say)
            if show:
                show(draft)
            cache = _fitted_cache(source, draft, calibration, say)
            lowering = lowering_of(parent, options.target, draft.plans, cache)
            job = Job(source, aside, draft, calibration, say, lowering)
            written = write_variant(job, options)
        _require_bytes(written, options)
        variant = seal(aside, written)
        say("comparing with the outputs recorded at export")
        parity = canary_parity(variant, settings)
        measured = measure(parent, variant, evaluation, say, settings) if evaluation else None
        gates = judge_all(parity, measured, limits_row(draft), limits)
        unmeasured = unmeasured_gates(measured, evaluation.no_accuracy if evaluation else "")
        judged = variant.manifest.model_copy(update={"gates": gates, "unmeasured": unmeasured})
        _tell_loss(draft, measured, say)
        if foreign := foreign_samples(measured, parent.manifest):
            say(foreign)
        report = report_of(
            replace(job, parent=parent), judged, parity, measured, evaluation, time.monotonic() - started
        )
        write_report(
            report.model_copy(update={"not_measured": (*report.not_measured, *filter(None, [note, foreign]))}), aside
        )
        return seal(aside, judged, unchanged=variant.manifest.files).manifest


def _measured_on(options: Options) -> RuntimeSettings:
    """Return where a variant is run to be measured: where it will serve, or on the CPU where this machine cannot."""
    provider = provider_of(options.target)
    return RuntimeSettings(provider=provider if runs_here(provider) else "cpu", encoder_runtime=options.encoder_runtime)


def _elsewhere(target: Target, settings: RuntimeSettings) -> str:
    """Return what is to be said where a variant is measured on something else than it was made for; else nothing."""
    if settings.provider == target:
        return ""
    reason = "engines are built on the board" if target == "tensorrt" else f"this machine has no {target}"
    return f"quality on {target}: {reason}, so it is measured on the CPU, whose kernels round differently"


def _require_calibration(draft: Draft, options: Options, calibration: Evaluation | None) -> None:
    """Check that there are samples where something is fitted to inputs.

    Raises:
        QuantizationError: There are none.
    """
    fitted = sorted({plan.recipe for plan in draft.plans.values() if RECIPES[plan.recipe].calibration != "none"})
    if options.max_bytes is not None or options.max_kl is not None:
        fitted.append("the search for bits")
    if draft.cache != "float":
        fitted.append(f"--kv-cache {draft.cache}")
    if fitted and (calibration is None or not calibration.num_samples):
        what = "is missing" if calibration is None else "holds no samples"
        raise QuantizationError(
            f"{', '.join(fitted)}: fitted to real inputs, and calibration {what}. Pass --calibration FILE.jsonl with a "
            "few dozen samples of what the model will see, or take int8 or int4 as they are"
        )
    tower = draft.plans.get("vision_encoder")
    if tower and calibration and RECIPES[tower.recipe].calibration != "none" and not shows_images(calibration):
        raise QuantizationError(
            f"{tower.recipe} fits the vision encoder to images, and no sample of {calibration.source} has one. Leave "
            f"it out, --weights {draft.asked.without('vision_encoder')}, or calibrate on samples with images"
        )


def _fitted_cache(source: Bundle, draft: Draft, calibration: Evaluation | None, say: Say) -> CodedCache | None:
    """Return the scales of a cache of codes, where one is asked for."""
    if draft.cache == "float" or calibration is None:
        return None
    require_operators(draft.cache)
    if not shows_images(calibration):
        say(f"cache: no sample of {calibration.source} has an image; its scales are fitted to text alone")
    return fit_cache(FeedSource(source, calibration), draft.cache, say)


def _require_measurable(
    evaluation: Evaluation, parent: Bundle, draft: Draft, options: Options, limits: Mapping[str, float] | None
) -> None:
    """Check that samples can pass the limits of what will be written.

    Raises:
        QuantizationError: They are of the other kind, or too few.
    """
    if parent.manifest.reads_pairs:
        asked_of(evaluation, sees=parent.manifest.sees)
        return
    if parent.manifest.image_vectors is not None:
        images_of(evaluation)
        return
    is_searched = options.max_bytes is not None or options.max_kl is not None
    row = MIXED if is_searched else limits_row(draft)
    require_measurable(evaluation, row, is_dual=parent.manifest.embeds, overrides=limits)


def _require_bytes(variant: Manifest, options: Options) -> None:
    """Check that what was written is as small as was asked: roundings may store more than the search counted.

    Raises:
        QuantizationError: It is not.
    """
    if options.max_bytes is not None and variant.weight_bytes > options.max_bytes:
        over = variant.weight_bytes - options.max_bytes
        raise QuantizationError(
            f"the weights take {variant.weight_bytes} bytes, {over} more than --max-bytes {options.max_bytes} allows: "
            f"ask for {options.max_bytes - over}"
        )


def _tell_loss(draft: Draft, measured: Measured | None, say: Say) -> None:
    """Say what a searched plan was predicted to lose and what it lost, and what an experimental one did."""
    forced = measured.teacher_forced if measured else None
    found = "not measured: no evaluation was given" if forced is None else f"measured {forced.kl_mean:.4f}"
    if draft.search is not None:
        say(f"KL mean in nats: predicted {draft.search.predicted_kl:.4f}, the sum over single layers; {found}")
    elif experimental(draft):
        say(f"{', '.join(experimental(draft))} is experimental. KL mean in nats: {found}")


def limits_row(draft: Draft) -> str:
    """Return the row of `quant.quality.gate.LIMITS` that a variant is held to: by what it holds, not what was asked.

    A cache of codes is held to the row of weights of its bits, or to that of its weights where it allows more.
    """
    rows = [name for name in (_row_of_weights(draft), draft.cache) if name in LIMITS]
    return max(rows, key=lambda name: LIMITS[name]["kl_mean"].value)


def _row_of_weights(draft: Draft) -> str:
    if draft.asked.by_component or draft.search:
        return MIXED
    used = {plan.recipe for plan in draft.plans.values()}
    return draft.asked.default if draft.asked.default in used else used.pop() if len(used) == 1 else MIXED
