"""What is written beside a variant: how it was made, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bundle.machine import this_machine
from bundle.manifest import Component, ComponentName, Manifest
from bundle.report import (
    CacheReport,
    CalibrationFacts,
    ComponentReport,
    EvaluationFacts,
    Report,
)
from quant.calibration.coverage import unseen_share
from quant.planning.plan import ComponentPlan
from quant.planning.recipes import RECIPES
from quant.quality.evaluation import Evaluation, Measured
from quant.quality.parity import Parity
from quant.writing import Job, is_fitted


def report_of(
    job: Job,
    variant: Manifest,
    parity: Mapping[ComponentName, Parity],
    measured: Measured | None,
    evaluation: Evaluation | None,
    seconds: float,
) -> Report:
    """Return what is written beside a variant.

    Args:
        job: With the fp32 bundle as it was, not rotated.
        variant: Judged.
        parity: With the outputs recorded at export.
        measured: On samples; None where there were none.
        evaluation: Those samples.
        seconds: That all of it took.
    """
    found = measured or Measured()
    missing = () if measured else ("quality on samples: no evaluation was given",)
    plans = job.draft.plans.values()
    fitted = any(RECIPES[plan.recipe].calibration != "none" or any(map(is_fitted, plan.layers)) for plan in plans)
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
