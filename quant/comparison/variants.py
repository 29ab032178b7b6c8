"""The variants of one checkpoint side by side, and which of them to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bundle.directory import Bundle, open_bundle
from bundle.errors import BundleFormatError
from bundle.manifest import Manifest
from bundle.report import Report, TaskAccuracy, read_report
from quant.comparison.rivals import Rivals
from quant.quality.evaluation import ALL_TASKS
from runtime.turns import Quartiles

REFERENCE = "fp32"
"""What the parent is called."""

Verdict = Literal["reference", "passed", "failed", "not gated"]


@dataclass(frozen=True)
class Variant:
    """One bundle.

    Attributes:
        label: By what it is told from its siblings.
        bundle: Opened.
        report: None for an fp32 bundle.
    """

    label: str
    bundle: Bundle
    report: Report | None

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    @property
    def accuracy(self) -> TaskAccuracy | None:
        """Over all tasks, where it was measured."""
        return self.report.tasks.get(ALL_TASKS) if self.report else None

    @property
    def verdict(self) -> Verdict:
        """What its gates say."""
        if self.manifest.is_gated is None:
            return "reference"
        if self.manifest.is_gated:
            return "passed"
        return "failed" if self.manifest.has_failed_gate else "not gated"


@dataclass(frozen=True)
class Siblings:
    """An fp32 parent and what was made of it.

    Attributes:
        name: The parent's.
        parent: The fp32 bundle, where it was given too.
        variants: Quantized, the smallest first; of equal ones the one that lost least.
        speeds: Items per second by label; empty where not measured.
        speed_ratios: To the parent's by label, over rounds in turns; empty where not measured or without a parent.
        speed_threads: Of each variant when it was timed; 0 means one per physical core.
        per_joule: Items by label; empty where no meter of energy was read.
        rivals: Other systems that were held against the same parent.
    """

    name: str
    parent: Variant | None
    variants: tuple[Variant, ...]
    speeds: Mapping[str, Quartiles] = field(default_factory=dict)
    speed_ratios: Mapping[str, Quartiles] = field(default_factory=dict)
    speed_threads: int = 0
    per_joule: Mapping[str, float] = field(default_factory=dict)
    rivals: tuple[Rivals, ...] = ()

    @property
    def rival_threads(self) -> int:
        """Threads of the other systems when they were timed; 0 where none was."""
        return next((each.speed.threads for each in self.rivals if each.speed), 0)

    @property
    def reports(self) -> Sequence[Report]:
        """The variants' reports."""
        return [variant.report for variant in self.variants if variant.report]

    @property
    def parent_sha256(self) -> str:
        """The source digest that all share."""
        return self.variants[0].manifest.source_sha256

    @property
    def fp32_bytes(self) -> int:
        """Weights of the parent."""
        return self.reports[0].fp32_bytes

    @property
    def fp32_accuracy(self) -> float | None:
        """The parent's share of right answers, 0 to 1, where any variant was measured beside it."""
        return next((variant.accuracy.fp32 for variant in self.variants if variant.accuracy), None)

    @property
    def speed_unit(self) -> str:
        """What is counted per second."""
        return "images" if self.variants[0].manifest.embeds else "tokens"

    @property
    def recommended(self) -> Variant | None:
        """The smallest variant that passes its gates."""
        return next((variant for variant in self.variants if variant.verdict == "passed"), None)

    @property
    def pareto(self) -> list[Variant]:
        """Variants than which none is both smaller and more often right, the smallest first."""
        front: list[Variant] = []
        for variant in self.variants:
            best = max((each.accuracy.quantized for each in front if each.accuracy), default=-1.0)
            if variant.accuracy and variant.accuracy.quantized > best:
                front.append(variant)
        return front

    @property
    def tasks(self) -> list[str]:
        """Names of all tasks in the order of the reports, "all" last."""
        names = dict.fromkeys(name for report in self.reports for name in report.tasks if name != ALL_TASKS)
        return [*names, ALL_TASKS] if names else []


def read_siblings(directories: Sequence[Path]) -> list[Siblings]:
    """Return the bundles grouped by the checkpoint that they come from, in the order given.

    Raises:
        BundleFormatError: A checkpoint has no quantized variant among them, or a report is missing or of another form.
        BundleError: A bundle is not whole.
    """
    distinct = {directory.resolve(): directory for directory in directories}
    groups: dict[str, list[Bundle]] = {}
    for directory in distinct.values():
        bundle = open_bundle(directory, verify=False, allow_ungated=True)
        groups.setdefault(bundle.manifest.source_sha256, []).append(bundle)
    return [_siblings(members) for members in groups.values()]


def _labels(names: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a name for each variant that no other one bears: its first, or a later one where that is taken twice."""
    labels = [own[0] for own in names]
    for others in zip(*(own[1:] for own in names), strict=True):
        taken = list(labels)
        labels = [other if taken.count(label) > 1 else label for label, other in zip(taken, others, strict=True)]
    return labels


def _siblings(members: Sequence[Bundle]) -> Siblings:
    parents = [bundle for bundle in members if bundle.manifest.is_gated is None]
    reports = [(bundle, read_report(bundle)) for bundle in members if bundle.manifest.is_gated is not None]
    if not reports:
        names = ", ".join(str(bundle.directory) for bundle in parents)
        raise BundleFormatError(
            f"{names}: an fp32 bundle alone has nothing to be compared with. Add a quantized variant of it."
        )
    labels = _labels([(each.weights, it.directory.name, str(it.directory)) for it, each in reports])
    variants = [Variant(label, *found) for label, found in zip(labels, reports, strict=True)]
    parent = Variant(REFERENCE, parents[0], None) if parents else None
    return Siblings(reports[0][1].parent, parent, tuple(sorted(variants, key=_rank)))


def _rank(variant: Variant) -> tuple[float, ...]:
    """Return what variants are ordered by: size; where equal, what was lost, and then how far outputs moved."""
    lost = variant.accuracy.loss_points if variant.accuracy else 0.0
    forced = variant.report.teacher_forced if variant.report else None
    return variant.manifest.weight_bytes, lost, forced.kl_mean if forced else 0.0
