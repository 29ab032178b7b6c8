"""The page of a comparison: one HTML file that says which variant to take and why; no scripts, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bundle.gates import Gate, Unmeasured, reasons
from bundle.report import Report, TaskAccuracy
from bundle.summary import megabytes
from pages.file import write_whole
from pages.frame import page, table
from pages.png import write_png
from pages.svg import svg
from quant.comparison.charts import charts_of, form_label, short_layer
from quant.comparison.decode_speed import HOW, HOW_METERED
from quant.comparison.rival_section import FORCED_HEAD, forced_cells, rival_section
from quant.comparison.scatter import Chart
from quant.comparison.variants import REFERENCE, Siblings, Variant

_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
"""Of a model's name, what a file name does without."""

_PAIRS_HEAD = ("rank correlation", "score difference")
_MOST_LAYERS = 10
_VERDICT_CLASSES = {"passed": "good", "failed": "bad", "not gated": "warn", "reference": "soft"}


def write_comparison(path: Path, groups: Sequence[Siblings]) -> list[Path]:
    """Write the page, and each of its charts as a PNG file beside it; return what was written.

    Args:
        path: Of the page. "report.html" gets "report-accuracy-by-size.png" and so on; with several checkpoints a
            number and the parent's name stand in between.
        groups: One per checkpoint.
    """
    charts = [charts_of(siblings) for siblings in groups]
    is_alone = len(groups) == 1
    heading = "" if is_alone else "<h1>Which variants to take</h1>"
    body = "".join(_section(siblings, drawn, is_alone) for siblings, drawn in zip(groups, charts, strict=True))
    title = f"Variants of {', '.join(siblings.name for siblings in groups)}"
    write_whole(path, page(title, heading + body).encode())
    written = [path]
    for number, (siblings, drawn) in enumerate(zip(groups, charts, strict=True), start=1):
        prefix = path.stem if is_alone else f"{path.stem}-{number}-{_NOT_IN_NAMES.sub('_', siblings.name)}"
        for chart in drawn:
            written.append(path.with_name(f"{prefix}-{chart.name}.png"))
            write_png(chart.drawing, written[-1])
    return written


def verdict_sentence(siblings: Siblings) -> str:
    """Return which variant to take, with its numbers."""
    best = siblings.recommended
    if best is None:
        return f"Keep {siblings.name} in fp32: none of its {len(siblings.variants)} smaller variants passes its gates"
    size = best.manifest.weight_bytes
    parts = [f"{megabytes(size)} of weights, {size / siblings.fp32_bytes:.0%} of fp32"]
    if accuracy := best.accuracy:
        parts.append(f"{accuracy.quantized:.1%} of {accuracy.n} answers right, fp32 {accuracy.fp32:.1%}")
    if ratio := siblings.speed_ratios.get(best.label):
        parts.append(f"{ratio.median:.2g} times the speed of fp32")
    return f"Take {best.label}: {'; '.join(parts)}"


def _section(siblings: Siblings, charts: Sequence[Chart], is_alone: bool) -> str:
    level = "h1" if is_alone else "h2"
    parts = (
        f"<{level}>{escape(verdict_sentence(siblings))}</{level}>",
        _origin(siblings),
        _variants(siblings),
        _figures(charts),
        rival_section(siblings),
        _tasks(siblings),
        _gates(siblings),
        _profiles(siblings),
        _layers(siblings),
        _components(siblings),
        _not_measured(siblings),
        _method(siblings),
    )
    return f"<section>{''.join(parts)}</section>"


def _origin(siblings: Siblings) -> str:
    manifest = siblings.variants[0].manifest
    facts = {
        f"{report.evaluation.num_samples} samples ({report.evaluation.source})"
        for report in siblings.reports
        if report.evaluation
    }
    samples = "; ".join(sorted(facts)) or "no samples"
    differ = (
        ' <span class="warn">Not all variants were measured on the same samples: compare their losses, not their '
        "accuracies.</span>"
        if len(facts) > 1
        else ""
    )
    rule = "The recommendation is the smallest variant that passes all of the quality gates that could be measured."
    return (
        f'<p class="soft">{escape(siblings.name)}: {escape(manifest.model_type)} from {escape(manifest.source)}, '
        f"measured on {escape(samples)}. {rule}{differ}</p>"
    )


def _variants(siblings: Siblings) -> str:
    is_dual = siblings.variants[0].manifest.embeds
    reads_pairs = siblings.variants[0].manifest.reads_pairs
    measures = ("image cosine", "text cosine") if is_dual else _PAIRS_HEAD if reads_pairs else FORCED_HEAD
    speed = [f"{siblings.speed_unit}/s"] if siblings.speeds else []
    speed += [f"{siblings.speed_unit}/J"] if siblings.per_joule else []
    head = ("variant", "weights", "right answers", "points lost", *measures, *speed, "gates")
    rows = [_variant_row(siblings, variant) for variant in siblings.variants]
    best = siblings.recommended
    chosen = siblings.variants.index(best) if best else None
    ideal = "cosines of 1" if is_dual else "a correlation of 1" if reads_pairs else "0 of KL and NLL, 100 % the same"
    return (
        table(head, [*rows, _parent_row(siblings, len(measures))], chosen=chosen)
        + f'<p class="soft">The nearer to {REFERENCE}, the better: 0 points lost, {ideal}.</p>'
    )


def _variant_row(siblings: Siblings, variant: Variant) -> list[str]:
    size = variant.manifest.weight_bytes
    weights = f"{megabytes(size)}<small>{size / siblings.fp32_bytes:.2f} of fp32</small>"
    speed = _speed(siblings, variant.label)
    return [
        escape(variant.label),
        weights,
        *_accuracy(variant.accuracy),
        *_likeness(variant),
        *speed,
        _verdict(variant),
    ]


def _parent_row(siblings: Siblings, num_measures: int) -> list[str]:
    right = "" if siblings.fp32_accuracy is None else f"{siblings.fp32_accuracy:.1%}"
    speed = _speed(siblings, REFERENCE)
    reference = '<span class="soft">reference</span>'
    return [REFERENCE, megabytes(siblings.fp32_bytes), right, "", *[""] * num_measures, *speed, reference]


def _accuracy(accuracy: TaskAccuracy | None) -> tuple[str, str]:
    if accuracy is None:
        return "not measured", ""
    interval = f"<small>{accuracy.loss_low:.2f} to {accuracy.loss_high:.2f}</small>"
    return f"{accuracy.quantized:.1%}<small>of {accuracy.n}</small>", f"{accuracy.loss_points:.2f}{interval}"


def _likeness(variant: Variant) -> list[str]:
    report = variant.report
    if report is None or report.evaluation is None:
        return [""] * (4 if variant.manifest.decoder else 2)
    if report.pairs is not None:
        ranked = report.pairs.rank_correlation
        return ["" if ranked is None else f"{ranked:.4f}", f"{report.pairs.score_difference:.4f}"]
    if variant.manifest.embeds:
        found = [report.likenesses.get(kind) for kind in ("image", "text")]
        return [f"{each.cosine_mean:.4f}<small>p1 {each.cosine_p1:.4f}</small>" if each else "" for each in found]
    forced, replies = report.teacher_forced, report.replies
    if forced is None or replies is None:
        return [""] * 4
    return forced_cells(forced, replies)


def _speed(siblings: Siblings, label: str) -> list[str]:
    """Return the cells of a row for speed and, where it was metered, for energy."""
    if not siblings.speeds:
        return []
    ratio = f"<small>{siblings.speed_ratios[label].median:.2f} x fp32</small>" if label in siblings.speed_ratios else ""
    speed = f"{siblings.speeds[label].median:.0f}{ratio}" if label in siblings.speeds else ""
    per_joule = f"{siblings.per_joule[label]:.3g}" if label in siblings.per_joule else ""
    return [speed, per_joule] if siblings.per_joule else [speed]


def _verdict(variant: Variant) -> str:
    gates = variant.manifest.gates
    passed, left = sum(gate.passed for gate in gates), len(variant.manifest.unmeasured)
    told = {
        "passed": f"all {len(gates)}" + (f", {left} not measured" if left else ""),
        "failed": f"{len(gates) - passed} of {len(gates)}",
        "not gated": "no samples",
        "reference": "",
    }[variant.verdict]
    return f'<span class="{_VERDICT_CLASSES[variant.verdict]}">{variant.verdict}</span><small>{told}</small>'


def _figures(charts: Sequence[Chart]) -> str:
    figures = "".join(
        f"<figure><h3>{escape(chart.drawing.title)}</h3>{svg(chart.drawing)}<figcaption>{escape(chart.caption)}</figcaption></figure>"
        for chart in charts
    )
    return f'<h2>Charts</h2><div class="charts">{figures}</div>' if charts else ""


def _tasks(siblings: Siblings) -> str:
    if not siblings.tasks:
        return ""
    measured = [variant for variant in siblings.variants if variant.report and variant.report.tasks]
    rows = []
    for task in siblings.tasks:
        found = [variant.report.tasks.get(task) for variant in measured if variant.report]
        known = next(each for each in found if each)
        cells = ["" if each is None else f"{each.quantized:.1%}" for each in found]
        rows.append([escape(task), str(known.n), f"{known.fp32:.1%}", *cells])
    head = ("task", "n", REFERENCE, *(variant.label for variant in measured))
    return f"<h2>Right answers by task</h2>{table(head, rows)}"


def _gates(siblings: Siblings) -> str:
    parts = []
    for variant in siblings.variants:
        gates = sorted(variant.manifest.gates, key=lambda gate: gate.passed)  # what failed comes first
        is_open = " open" if variant.verdict == "failed" else ""
        head = ("gate", "measured", "limit", "n", "verdict")
        rows = [*map(_gate_row, gates), *map(_unmeasured_row, variant.manifest.unmeasured)]
        told = table(head, rows) if rows else "<p>None was measured.</p>"
        parts.append(
            f"<details{is_open}><summary>{escape(variant.label)}: "
            f'<span class="{_VERDICT_CLASSES[variant.verdict]}">{variant.verdict}</span></summary>{told}</details>'
        )
    return f"<h2>Quality gates</h2>{''.join(parts)}"


def _gate_row(gate: Gate) -> list[str]:
    sign = "≥" if gate.direction == "min" else "≤"
    own = "<small>set by the user</small>" if gate.is_overridden else ""
    verdict = '<span class="good">passed</span>' if gate.passed else '<span class="bad">failed</span>'
    return [escape(gate.name), f"{gate.value:.4g}", f"{sign} {gate.limit:g}{own}", str(gate.n), verdict]


def _unmeasured_row(gate: Unmeasured) -> list[str]:
    return [escape(gate.name), f"not measured<small>{escape(gate.reason)}</small>", "", "", ""]


def _profiles(siblings: Siblings) -> str:
    rows = [
        [
            escape(variant.label),
            f"{profile.name}{' (chosen)' if profile.is_chosen else ''}",
            f"{profile.first_token_ms:.1f}",
            f"{profile.inter_token_ms:.2f}",
            megabytes(profile.weight_bytes),
            f"{profile.kv_bytes_per_token / 1e3:.1f}",
            escape(profile.note),
        ]
        for variant in siblings.variants
        for profile in (variant.report.profiles if variant.report else ())
    ]
    if not rows:
        return ""
    head = (
        "variant",
        "decoder profile",
        "first token, ms",
        "per token, ms",
        "weights",
        "cache, kB per token",
        "assumed",
    )
    return f"<h2>Decoder profiles, predicted from layer times</h2>{table(head, rows, prose=len(head) - 1)}"


def _layers(siblings: Siblings) -> str:
    rows = max((report.sensitivity for report in siblings.reports), key=len, default=())
    if not rows:
        return ""
    worst = sorted(rows, key=lambda row: -row.loss)[:_MOST_LAYERS]
    cells = [
        [
            escape(short_layer(row.layer)),
            row.component,
            form_label(row.form),
            f"{row.loss:.5f}",
            f"{(row.fp32_bytes - row.weight_bytes) / 1e6:.2f}",
        ]
        for row in worst
    ]
    head = ("layer", "component", "form", "loss", "MB saved")
    return f"<h2>The {len(worst)} costliest of {len(rows)} layers and forms tried</h2>{table(head, cells)}"


def _components(siblings: Siblings) -> str:
    parts = []
    for variant in siblings.variants:
        reports = variant.report.components if variant.report else {}
        rows = [
            [
                name,
                component.scheme,
                megabytes(component.weight_bytes),
                f"{component.weight_bytes / reports[name].fp32_bytes:.2f}" if name in reports else "",
                "<br>".join(escape(line) for line in component.detail.splitlines()),
            ]
            for name, component in variant.manifest.components.items()
        ]
        held = table(("component", "scheme", "weights", "of fp32", "choices"), rows, prose=4)
        parts.append(f"<details><summary>{escape(variant.label)}</summary>{held}</details>")
    return f"<h2>What each variant holds</h2>{''.join(parts)}"


def _not_measured(siblings: Siblings) -> str:
    found: dict[str, list[str]] = {}
    for variant in siblings.variants:
        unmeasured = [f"{names}: {reason}" for reason, names in reasons(variant.manifest.unmeasured).items()]
        for line in (*variant.report.not_measured, *unmeasured) if variant.report else ():
            if not (siblings.speeds and line.startswith("speed:")):
                found.setdefault(line, []).append(variant.label)
        if variant.report and _fitted_to_the_test(variant.report):
            found.setdefault("held-out quality: weights were fitted to the samples of the test", []).append(
                variant.label
            )
    if not siblings.speeds:
        found.setdefault("speed beside each other: this page was made with --no-speed", [])
    if not siblings.parent:
        found.setdefault("speed of fp32: its bundle was not among those given", [])
    items = "".join(f"<li>{escape(line)}{_only(labels, siblings)}</li>" for line, labels in found.items())
    items += "<li>Machines other than the one named below; other data than the samples named above.</li>"
    return f"<h2>Not measured</h2><ul>{items}</ul>"


def _fitted_to_the_test(report: Report) -> bool:
    both = report.calibration, report.evaluation
    return bool(both[0] and both[1] and both[0].source == both[1].source)


def _only(labels: Sequence[str], siblings: Siblings) -> str:
    return (
        f' <span class="soft">({escape(", ".join(labels))})</span>' if 0 < len(labels) < len(siblings.variants) else ""
    )


def _threads(siblings: Siblings) -> str:
    num = siblings.speed_threads
    return "one thread per physical core" if not num else "one thread" if num == 1 else f"{num} threads"


def _method(siblings: Siblings) -> str:
    report = siblings.reports[0]
    machine = report.machine
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in machine.versions.items())
    memory = f", {machine.memory_bytes / 2**30:.0f} GiB" if machine.memory_bytes else ""
    cache = f", largest cache {machine.cache_bytes / 2**20:.0f} MiB" if machine.cache_bytes else ""
    fitted = sorted(
        f"{variant.label}: {each.num_samples} samples of {each.source}"
        for variant in siblings.variants
        if variant.report and (each := variant.report.calibration)
    )
    calibration = f" Weights were fitted to samples for {escape('; '.join(fitted))}." if fitted else ""
    speed = f" Speed: {_threads(siblings)} each. {HOW}" if siblings.speeds else ""
    speed += f" {HOW_METERED}" if siblings.per_joule else ""
    return (
        "<h2>How this was measured</h2><p>Each variant beside its fp32 parent on the same samples. KL divergence, the "
        "change of -log p of the right token (NLL), both in nats, and the agreement of first choices are taken at "
        "every token of the right answer with that answer fed; NLL is below the parent's where the variant is less "
        "sure of what the parent gets wrong, which is a change like any other and no gain. Replies are greedy; those "
        "that differ part, on average, at the token told. Points lost: percentage points that the parent answers right "
        "more often, with the 95 % bootstrap "
        "interval over pairs (2000 resamples); those of KL and of first choices are drawn over questions."
        f"{calibration}{escape(speed)}</p>"
        f'<p class="soft">{escape(machine.cpu)}, {machine.cores} cores{memory}{cache}; {escape(machine.system)}; '
        f"{versions}</p>"
    )
