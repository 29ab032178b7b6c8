"""A bundle made smaller: planned, rewritten, measured, judged, and put in place whole or not at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bundle.cache_scales import save_cache_scales
from bundle.directory import MANIFEST, Bundle, open_bundle, seal, write_aside
from bundle.errors import QuantizationError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.machine import this_machine
from bundle.manifest import Component, ComponentName, Manifest, Segment, Target
from bundle.report import (
    REPORT,
    CacheReport,
    CalibrationFacts,
    ComponentReport,
    EvaluationFacts,
    Report,
    write_report,
)
from graphs.lowering.coded_cache import CodedCache
from graphs.lowering.component import Lowering
from graphs.segments import cut_segment
from graphs.sharing import share_weights
from graphs.store import open_graph, save_graph, weight_bytes
from quant.calibration.calibrator import Calibrator
from quant.calibration.coverage import unseen_share
from quant.calibration.feeds import FeedSource, shows_images
from quant.kv_cache.refusals import require_operators
from quant.kv_cache.scales import fit_cache
from quant.planning.draft import Draft, Options, experimental, fit_bits, make_draft
from quant.planning.plan import ComponentPlan, LayerPlan, apply_plan, planned
from quant.planning.planner import require_float
from quant.planning.profiles import Plans
from quant.planning.recipes import RECIPES
from quant.planning.refinement import refine, rotated_parent
from quant.quality.evaluation import Evaluation, Measured, images_of
from quant.quality.gate import LIMITS, MIXED, foreign_samples, judge_all, measure, require_measurable, unmeasured_gates
from quant.quality.pairs import asked_of
from quant.quality.parity import Parity, canary_parity
from quant.retyped import retype_inputs, retype_states
from quant.rounding.table import load_rounding
from runtime.operators import runs_here
from runtime.settings import RuntimeSettings, provider_of

Say = Callable[[str], None]
_DEFAULTS = Options()
_FED_METHODS = ("w8a8", "matmul_nbits", "qdq_int4", "gather_blocks")
"""Whose forms name a rounding of `quant.rounding.table`."""


@dataclass(frozen=True)
class Job:
    """What is made of what.

    Attributes:
        parent: The fp32 bundle.
        aside: Where the variant is written.
        draft: What was decided.
        calibration: Samples that weights are fitted to.
        say: Told of each step.
        lowering: How graphs are written.
    """

    parent: Bundle
    aside: Path
    draft: Draft
    calibration: Evaluation | None
    say: Say
    lowering: Lowering


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
            written = _write_variant(job, options)
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
        report = _report(replace(job, parent=parent), judged, parity, measured, evaluation, time.monotonic() - started)
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


def _write_variant(job: Job, options: Options) -> Manifest:
    components: dict[ComponentName, Component] = {}
    segments: list[Segment] = []
    for name, plan in job.draft.plans.items():
        components[name] = _write_graph(job, name, plan, segments)
    parent = job.parent.manifest
    if parent.segments and not segments:
        job.say(f"segments are for the CPU: this variant for {options.target} has none")
    components, segments = _share(job, components, segments)
    graphs = {part.file for part in (*parent.components.values(), *parent.segments)}
    rewritten = graphs | {f"{file}.data" for file in graphs} | {REPORT, MANIFEST}
    for file in parent.files.keys() - rewritten:
        shutil.copyfile(job.parent.path(file), job.aside / file)
    title = f"{parent.name}-{job.draft.label}"
    changes = {
        "components": components,
        "segments": tuple(segments),
        "states": job.lowering.states,
        "target": options.target,
    }
    variant = parent.model_copy(update={"name": title, **changes})
    if job.lowering.is_for_cuda:
        retype_inputs(job.parent, variant, job.aside)
    elif variant.states != parent.states:
        retype_states(job.parent, variant, job.aside)
    if job.lowering.cache is not None:
        save_cache_scales(job.aside, job.lowering.cache.scales)
    return variant


def lowering_of(
    parent: Bundle, target: Target, plans: Plans | None = None, cache: CodedCache | None = None
) -> Lowering:
    """Return how the graphs of a variant are written, which has been planned so."""
    found = plans or {}
    smaller = {parent.manifest.components[plan.parent].role for plan in found.values() if plan.recipe != "fp32"}
    float32_roles = frozenset(part.role for part in parent.manifest.components.values() if part.role not in smaller)
    image = ImageSpec.read(parent.path(PREPROCESSOR)) if parent.manifest.sees else None
    return Lowering(parent.manifest, target, image, float32_roles, cache)


def _share(
    job: Job, components: Mapping[ComponentName, Component], segments: Sequence[Segment]
) -> tuple[dict[ComponentName, Component], list[Segment]]:
    """Store once what several graphs hold, and return them without the bytes that others hold for them."""
    files = sorted((part.file for part in components.values()), key=lambda file: not file.startswith("decoder."))
    files += [part.file for part in segments]
    saved = share_weights(job.aside, files)  # the decoder first: it keeps what the others point at
    for file, num_bytes in saved.items():
        job.say(f"{file}: {num_bytes / 1e6:.1f} MB are stored in another graph's file")
    left = {part.file: part.weight_bytes - saved.get(part.file, 0) for part in (*components.values(), *segments)}
    return (
        {name: part.model_copy(update={"weight_bytes": left[part.file]}) for name, part in components.items()},
        [part.model_copy(update={"weight_bytes": left[part.file]}) for part in segments],
    )


def _write_graph(job: Job, name: ComponentName, plan: ComponentPlan, segments: list[Segment]) -> Component:
    """Write one graph; add to the segments those that are cut of it."""
    source = job.parent.manifest.components[plan.parent]
    model = open_graph(job.parent.path(source.file))
    _carry_out(job, model, plan.without(_halved(job, plan)))
    if source.role == "decoder" and plan.phase != "step" and job.lowering.target == "cpu":
        segments += [_write_segment(job, model.clone(), segment, plan) for segment in job.parent.manifest.segments]
    source = job.lowering.apply(model, source, plan.phase)
    written = planned(source, plan, weight_bytes(model))
    save_graph(model, job.aside / written.file)
    before, after = source.weight_bytes / 1e6, written.weight_bytes / 1e6
    job.say(f"{name}: {before:.1f} -> {after:.1f} MB, {written.scheme}")
    return written


def _write_segment(job: Job, model: ir.Model, segment: Segment, plan: ComponentPlan) -> Segment:
    """Write what one segment of the parent's becomes of a whole decoder whose weights are as planned."""
    cut_segment(model, segment, job.parent.manifest.states_of(segment))
    job.lowering.apply(model, segment, plan.phase)
    save_graph(model, job.aside / segment.file)
    return segment.model_copy(update={"scheme": plan.scheme, "weight_bytes": weight_bytes(model)})


def _halved(job: Job, plan: ComponentPlan) -> list[str]:
    """Return the layers that lowering turns into float16, with all of their graph."""
    role = job.parent.manifest.components[plan.parent].role
    return list(plan.forms_of("float16")) if job.lowering.halves(role) else []


def _carry_out(job: Job, model: ir.Model, plan: ComponentPlan) -> None:
    """Rewrite a graph as planned, calibrating what wants it."""
    wants = RECIPES[plan.recipe].calibration
    if job.calibration is None:
        apply_plan(model, plan)
        return
    calibrator = Calibrator(FeedSource(job.parent, job.calibration), job.say)
    if of_head := {layer.name: layer.head for layer in plan.layers if layer.head and _is_fitted(layer)}:
        (found,) = calibrator.groups("decoder", grams=True, layers=list(of_head.values()))
        apply_plan(model, plan, {table: found[head] for table, head in of_head.items()})
        return
    if plan.scaling is not None or wants == "peaks":
        groups = calibrator.groups(plan.parent, grams=wants == "grams")
        apply_plan(model, plan, {layer: found for group in groups for layer, found in group.items()})
        return
    fitted = [layer.name for layer in plan.layers if _is_fitted(layer)]
    if not fitted:
        apply_plan(model, plan)
        return
    for group in calibrator.groups(
        plan.parent, grams=True, layers=fitted
    ):  # a group's Grams are let go before the next
        apply_plan(model, plan.only(group), group)
        del group
    apply_plan(model, plan.without(fitted))


def _is_fitted(layer: LayerPlan) -> bool:
    """Return whether the codes of a layer depend on what meets it."""
    form = layer.choice.form
    fed = form is not None and layer.choice.method in _FED_METHODS and load_rounding(form.rounding).needs_gram
    return fed or bool(form and form.loud_inputs)


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


def _report(
    job: Job,
    variant: Manifest,
    parity: Mapping[ComponentName, Parity],
    measured: Measured | None,
    evaluation: Evaluation | None,
    seconds: float,
) -> Report:
    found = measured or Measured()
    missing = () if measured else ("quality on samples: no evaluation was given",)
    plans = job.draft.plans.values()
    fitted = any(RECIPES[plan.recipe].calibration != "none" or any(map(_is_fitted, plan.layers)) for plan in plans)
    fitted = fitted or job.lowering.cache is not None
    return Report(
        parent=job.parent.name,
        parent_sha256=job.parent.manifest.source_sha256,
        weights=job.draft.label,
        fp32_bytes=job.parent.manifest.weight_bytes,
        weight_bytes=variant.weight_bytes,
        components={
            name: _component_report(
                part, job.draft.plans[name], job.parent.manifest.components[job.draft.plans[name].parent], parity[name]
            )
            for name, part in variant.components.items()
        },
        calibration=_calibration_facts(job, job.calibration, evaluation) if fitted and job.calibration else None,
        evaluation=EvaluationFacts(**_facts(evaluation)) if evaluation else None,
        **{part.name: getattr(found, part.name) for part in fields(found)},
        kv_cache=_cache_report(job.parent.manifest, variant),
        profiles=job.draft.profiles,
        sensitivity=job.draft.search.table if job.draft.search else (),
        gates=variant.gates,
        unmeasured=variant.unmeasured,
        not_measured=(*missing, "speed: measure it with pocketvlm bench on the machine that will serve"),
        machine=this_machine(("onnxruntime", "numpy")),
        seconds=round(seconds, 2),
    )


def _cache_report(parent: Manifest, variant: Manifest) -> CacheReport | None:
    if variant.cache_scheme == "float":
        return None
    return CacheReport(
        scheme=variant.cache_scheme,
        fp32_bytes_per_token=parent.state_bytes_per_token,
        bytes_per_token=variant.state_bytes_per_token,
    )


def _calibration_facts(job: Job, calibration: Evaluation, evaluation: Evaluation | None) -> CalibrationFacts:
    unseen = unseen_share(job.parent, calibration, evaluation) if evaluation else None
    return CalibrationFacts(**_facts(calibration), unseen_share=unseen)


def _facts(samples: Evaluation) -> dict[str, Any]:
    return {"source": samples.source, "num_samples": samples.num_samples}


def _component_report(component: Component, plan: ComponentPlan, parent: Component, parity: Parity) -> ComponentReport:
    return ComponentReport(
        scheme=component.scheme,
        choices=tuple(component.detail.splitlines()),
        decisions=plan.decisions,
        fp32_bytes=parent.weight_bytes,
        weight_bytes=component.weight_bytes,
        canary_cosine=parity.cosine,
        canary_max_abs=parity.max_abs,
    )
