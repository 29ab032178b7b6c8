"""A bundle made smaller: planned, rewritten, measured, judged, and put in place whole or not at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bundle.directory import MANIFEST, open_bundle, seal, write_aside
from bundle.errors import QuantizationError
from bundle.machine import this_machine
from bundle.manifest import Component, ComponentName, Gate, Manifest
from quant.evaluation import Evaluation, Measured
from quant.gate import judge_all, measure
from quant.graphs import open_graph, save_graph, weight_bytes
from quant.parity import Parity, canary_parity
from quant.planner import Recipe, apply_plan, plan_component, planned, recipe_named, require_float
from quant.report import REPORT, ComponentReport, EvaluationFacts, Report, write_report


def quantize_bundle(
    bundle: Path,
    output: Path,
    *,
    weights: str,
    evaluation: Evaluation | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Write a smaller variant of an fp32 bundle and return its manifest.

    Weights are read through memory maps and quantized a layer at a time, so that a graph costs about its quantized
    size in memory. `output` appears whole or not at all.

    Args:
        bundle: The parent.
        output: The variant's folder.
        weights: "int8" or "int4".
        evaluation: Samples to measure quality on; without them only the canary is compared.
        overwrite: Replace a bundle that stands at `output`.
        progress: Called with a line at each step.

    Raises:
        QuantizationError: Unknown weights, a parent that is quantized already, or a dialect without the operators.
        BundleError: The parent is not whole, or `output` exists.
    """
    started = time.monotonic()
    say = progress or (lambda line: None)
    recipe = recipe_named(weights)
    if output.resolve() == bundle.resolve():
        raise QuantizationError(f"{output} is the bundle to be quantized; choose another -o")
    parent = open_bundle(bundle, allow_ungated=True)  # a quantized parent has an error of its own
    require_float(parent)
    with write_aside(output, overwrite=overwrite) as aside:
        components = _quantize_components(bundle, aside, parent, recipe, say)
        _copy_the_rest(bundle, aside, parent)
        variant = parent.model_copy(update={"name": f"{parent.name}-{weights}", "components": components})
        say("comparing with the outputs recorded at export")
        parity = canary_parity(aside, components)
        measured = measure((bundle, parent), (aside, variant), evaluation, say) if evaluation else None
        gates = judge_all(parity, measured, weights)
        facts = EvaluationFacts(source=evaluation.source, num_samples=evaluation.num_samples) if evaluation else None
        report = _report(parent, variant, weights, parity, measured, facts, gates, time.monotonic() - started)
        write_report(report, aside)
        return seal(aside, variant.model_copy(update={"gates": gates}))


def _quantize_components(
    bundle: Path, aside: Path, parent: Manifest, recipe: Recipe, say: Callable[[str], None]
) -> dict[ComponentName, Component]:
    components: dict[ComponentName, Component] = {}
    for name, component in parent.components.items():
        model = open_graph(bundle / component.file)
        plan = plan_component(name, model.graph, parent, recipe)
        apply_plan(model, plan)
        save_graph(model, aside / component.file)
        components[name] = planned(component, plan, weight_bytes(model))
        before, after = component.weight_bytes / 1e6, components[name].weight_bytes / 1e6
        say(f"{name}: {before:.1f} -> {after:.1f} MB; {plan.detail.replace(chr(10), '; ')}")
    return components


def _copy_the_rest(bundle: Path, aside: Path, parent: Manifest) -> None:
    graphs = {component.file for component in parent.components.values()}
    rewritten = graphs | {f"{file}.data" for file in graphs} | {REPORT, MANIFEST}
    for name in parent.files.keys() - rewritten:
        shutil.copyfile(bundle / name, aside / name)


def _report(
    parent: Manifest,
    variant: Manifest,
    weights: str,
    parity: Mapping[ComponentName, Parity],
    measured: Measured | None,
    evaluation: EvaluationFacts | None,
    gates: tuple[Gate, ...],
    seconds: float,
) -> Report:
    components = {
        name: ComponentReport(
            scheme=component.scheme,
            choices=tuple(component.detail.splitlines()),
            fp32_bytes=parent.components[name].weight_bytes,
            weight_bytes=component.weight_bytes,
            canary_cosine=parity[name].cosine,
            canary_max_abs=parity[name].max_abs,
        )
        for name, component in variant.components.items()
    }
    missing = () if measured else ("quality on held-out samples: no evaluation was given",)
    found = measured or Measured()
    return Report(
        parent=parent.name,
        parent_sha256=parent.source_sha256,
        weights=weights,
        fp32_bytes=parent.weight_bytes,
        weight_bytes=variant.weight_bytes,
        components=components,
        evaluation=evaluation,
        teacher_forced=found.teacher_forced,
        replies=found.replies,
        image_sensitivity=found.image_sensitivity,
        likenesses=found.likenesses,
        tasks=found.tasks,
        gates=gates,
        not_measured=(*missing, "speed: measure it with pocketvlm bench on the machine that will serve"),
        machine=this_machine(("onnxruntime", "numpy")),
        seconds=round(seconds, 2),
    )
