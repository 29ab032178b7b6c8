"""The graphs of a variant, written as they were planned."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from bundle.cache_scales import save_cache_scales
from bundle.directory import MANIFEST, Bundle
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.manifest import Component, ComponentName, Manifest, Segment, Target
from bundle.report import (
    REPORT,
)
from graphs.lowering.coded_cache import CodedCache
from graphs.lowering.component import Lowering
from graphs.segments import cut_segment
from graphs.sharing import share_weights
from graphs.store import open_graph, save_graph, weight_bytes
from quant.calibration.calibrator import Calibrator
from quant.calibration.feeds import FeedSource
from quant.planning.draft import Draft, Options
from quant.planning.plan import ComponentPlan, LayerPlan, apply_plan, planned
from quant.planning.profiles import Plans
from quant.planning.recipes import RECIPES
from quant.quality.evaluation import Evaluation
from quant.retyped import retype_inputs, retype_states
from quant.rounding.table import load_rounding

Say = Callable[[str], None]
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


def write_variant(job: Job, options: Options) -> Manifest:
    """Write the variant's graphs, and copy what else there is; return its manifest, not sealed."""
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
    if of_head := {layer.name: layer.head for layer in plan.layers if layer.head and is_fitted(layer)}:
        (found,) = calibrator.groups("decoder", grams=True, layers=list(of_head.values()))
        apply_plan(model, plan, {table: found[head] for table, head in of_head.items()})
        return
    if plan.scaling is not None or wants == "peaks":
        groups = calibrator.groups(plan.parent, grams=wants == "grams")
        apply_plan(model, plan, {layer: found for group in groups for layer, found in group.items()})
        return
    fitted = [layer.name for layer in plan.layers if is_fitted(layer)]
    if not fitted:
        apply_plan(model, plan)
        return
    for group in calibrator.groups(
        plan.parent, grams=True, layers=fitted
    ):  # a group's Grams are let go before the next
        apply_plan(model, plan.only(group), group)
        del group
    apply_plan(model, plan.without(fitted))


def is_fitted(layer: LayerPlan) -> bool:
    """Return whether the codes of a layer depend on what meets it."""
    form = layer.choice.form
    fed = form is not None and layer.choice.method in _FED_METHODS and load_rounding(form.rounding).needs_gram
    return fed or bool(form and form.loud_inputs)
