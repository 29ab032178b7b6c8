"""The page of a comparison: one HTML file that says which variant to take and why; no scripts, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from bundle.manifest import Gate
from bundle.report import Report, TaskAccuracy
from bundle.summary import megabytes
from quant.comparison.charts import Chart, charts_of, form_label, short_layer
from quant.comparison.decode_speed import HOW
from quant.comparison.variants import REFERENCE, Siblings, Variant

_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
"""Of a model's name, what a file name does without."""

_MOST_LAYERS = 10
_VERDICT_CLASSES = {"passed": "good", "failed": "bad", "not gated": "warn", "reference": "soft"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --line: #d8dce3; --ground: #ffffff; --panel: #f6f7f9;
  --good: #17753a; --bad: #b3261e; --warn: #8a5a00; --series-0: #0072b2; --series-1: #d55e00; --series-2: #009e73;
  --series-3: #b0568c; --series-4: #a87900; --series-5: #3a8fbf; --series-6: #6b6b6b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a3acb8; --line: #383f48; --ground: #15181c;
  --panel: #1d2127; --good: #6bd08f; --bad: #ff8a80; --warn: #f0b840; --series-0: #56a7e0; --series-1: #ff8a3d;
  --series-2: #2cc79a; --series-3: #e29cc4; --series-4: #f0b840; --series-5: #9ad4ff; --series-6: #b5b5b5; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1240px;
  margin: 0 auto; padding: 2rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.3; margin: 0 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
section + section { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 2rem; }
p { margin: .4rem 0 .8rem; max-width: 75ch; } ul { padding-left: 1.2rem; max-width: 75ch; }
.soft, figcaption { color: var(--soft); } figcaption { font-size: .85rem; line-height: 1.4; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.good, .bad, .warn { font-weight: 600; }
.scroll { overflow-x: auto; } .scroll:focus-visible { outline: 2px solid var(--series-0); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .87rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--ground); }
td.text, th.text { text-align: left; white-space: normal; min-width: 16rem; overflow-wrap: normal; }
tr.chosen td { background: var(--panel); font-weight: 600; } tr.chosen td:first-child { padding-left: .5rem; }
small { color: var(--soft); font-size: .82rem; font-weight: 400; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 2rem 2.5rem; }
figure { margin: 0; } figure h3 { margin-top: 0; } svg { display: block; width: 100%; max-width: 560px; height: auto; }
details { border-top: 1px solid var(--line); padding: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
"""


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
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Variants of {escape(', '.join(siblings.name for siblings in groups))}</title>"
        f"<style>{_STYLE}</style></head>\n<body>{heading}{body}</body></html>\n",
        encoding="utf-8",
    )
    written = [path]
    for number, (siblings, drawn) in enumerate(zip(groups, charts, strict=True), start=1):
        prefix = path.stem if is_alone else f"{path.stem}-{number}-{_NOT_IN_NAMES.sub('_', siblings.name)}"
        for chart in drawn:
            written.append(path.with_name(f"{prefix}-{chart.name}.png"))
            chart.write_png(written[-1])
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
        parts.append(f"{ratio:.2g} times the speed of fp32")
    return f"Take {best.label}: {'; '.join(parts)}"


def _section(siblings: Siblings, charts: Sequence[Chart], is_alone: bool) -> str:
    level = "h1" if is_alone else "h2"
    parts = (
        f"<{level}>{escape(verdict_sentence(siblings))}</{level}>",
        _origin(siblings),
        _variants(siblings),
        _figures(charts),
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
    rule = "The recommendation is the smallest variant that passes all of its quality gates."
    return (
        f'<p class="soft">{escape(siblings.name)}: {escape(manifest.model_type)} from {escape(manifest.source)}, '
        f"measured on {escape(samples)}. {rule}{differ}</p>"
    )


def _table(
    head: Iterable[str], rows: Iterable[Sequence[str]], *, chosen: int | None = None, texts: bool = False
) -> str:
    """Return a table; cells of `rows` are HTML already, those of `head` are not. `texts`: the last column is prose."""
    heads = list(head)
    body = ""
    for at, row in enumerate(rows):
        cells = "".join(f"<td{_prose(place, heads, texts)}>{cell}</td>" for place, cell in enumerate(row))
        body += f'<tr class="chosen">{cells}</tr>' if at == chosen else f"<tr>{cells}</tr>"
    cells = "".join(f"<th{_prose(place, heads, texts)}>{escape(cell)}</th>" for place, cell in enumerate(heads))
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _prose(place: int, heads: Sequence[str], texts: bool) -> str:
    return ' class="text"' if texts and place == len(heads) - 1 else ""


def _variants(siblings: Siblings) -> str:
    is_dual = siblings.variants[0].manifest.dual is not None
    measures = (
        ("image cosine", "text cosine") if is_dual else ("KL mean", "NLL rise", "same first choice", "same replies")
    )
    speed = (f"{siblings.speed_unit}/s",) if siblings.speeds else ()
    head = ("variant", "weights", "right answers", "points lost", *measures, *speed, "gates")
    rows = [_variant_row(siblings, variant) for variant in siblings.variants]
    best = siblings.recommended
    chosen = siblings.variants.index(best) if best else None
    return _table(head, [*rows, _parent_row(siblings, len(measures))], chosen=chosen)


def _variant_row(siblings: Siblings, variant: Variant) -> list[str]:
    size = variant.manifest.weight_bytes
    weights = f"{megabytes(size)}<small>{size / siblings.fp32_bytes:.2f} of fp32</small>"
    speed = [_speed(siblings, variant.label)] if siblings.speeds else []
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
    speed = [_speed(siblings, REFERENCE)] if siblings.speeds else []
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
        return [""] * (2 if variant.manifest.dual else 4)
    if variant.manifest.dual:
        found = [report.likenesses[kind] for kind in ("image", "text")]
        return [f"{each.cosine_mean:.4f}<small>p1 {each.cosine_p1:.4f}</small>" for each in found]
    forced, replies = report.teacher_forced, report.replies
    if forced is None or replies is None:
        return [""] * 4
    first = "" if replies.first_divergence is None else f"<small>part at token {replies.first_divergence:.1f}</small>"
    return [
        f"{forced.kl_mean:.4f}<small>p99 {forced.kl_p99:.3f}</small>",
        f"{forced.delta_nll:+.4f}",
        f"{forced.top1_agreement:.2%}<small>of {forced.num_tokens} tokens</small>",
        f"{replies.identical:.1%}{first}",
    ]


def _speed(siblings: Siblings, label: str) -> str:
    if label not in siblings.speeds:
        return ""
    ratio = f"<small>{siblings.speed_ratios[label]:.2f} x fp32</small>" if label in siblings.speed_ratios else ""
    return f"{siblings.speeds[label].median:.0f}{ratio}"


def _verdict(variant: Variant) -> str:
    gates = variant.manifest.gates
    passed = sum(gate.passed for gate in gates)
    told = {
        "passed": f"all {len(gates)}",
        "failed": f"{len(gates) - passed} of {len(gates)}",
        "not gated": "no samples",
        "reference": "",
    }[variant.verdict]
    return f'<span class="{_VERDICT_CLASSES[variant.verdict]}">{variant.verdict}</span><small>{told}</small>'


def _figures(charts: Sequence[Chart]) -> str:
    figures = "".join(
        f"<figure><h3>{escape(chart.title)}</h3>{chart.svg()}<figcaption>{escape(chart.caption)}</figcaption></figure>"
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
    return f"<h2>Right answers by task</h2>{_table(head, rows)}"


def _gates(siblings: Siblings) -> str:
    parts = []
    for variant in siblings.variants:
        gates = sorted(variant.manifest.gates, key=lambda gate: gate.passed)  # what failed comes first
        is_open = " open" if variant.verdict == "failed" else ""
        head = ("gate", "measured", "limit", "n", "verdict")
        table = _table(head, [_gate_row(gate) for gate in gates]) if gates else "<p>None was measured.</p>"
        parts.append(
            f"<details{is_open}><summary>{escape(variant.label)}: "
            f'<span class="{_VERDICT_CLASSES[variant.verdict]}">{variant.verdict}</span></summary>{table}</details>'
        )
    return f"<h2>Quality gates</h2>{''.join(parts)}"


def _gate_row(gate: Gate) -> list[str]:
    sign = "≥" if gate.direction == "min" else "≤"
    own = "<small>set by the user</small>" if gate.is_overridden else ""
    verdict = '<span class="good">passed</span>' if gate.passed else '<span class="bad">failed</span>'
    return [escape(gate.name), f"{gate.value:.4g}", f"{sign} {gate.limit:g}{own}", str(gate.n), verdict]


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
    return f"<h2>Decoder profiles, predicted from layer times</h2>{_table(head, rows, texts=True)}"


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
    return f"<h2>The {len(worst)} costliest of {len(rows)} layers and forms tried</h2>{_table(head, cells)}"


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
        table = _table(("component", "scheme", "weights", "of fp32", "choices"), rows, texts=True)
        parts.append(f"<details><summary>{escape(variant.label)}</summary>{table}</details>")
    return f"<h2>What each variant holds</h2>{''.join(parts)}"


def _not_measured(siblings: Siblings) -> str:
    found: dict[str, list[str]] = {}
    for variant in siblings.variants:
        for line in variant.report.not_measured if variant.report else ():
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
    speed = f" Speed: {HOW}" if siblings.speeds else ""
    return (
        "<h2>How this was measured</h2><p>Each variant beside its fp32 parent on the same samples. KL divergence, the "
        "rise of -log p of the right token (NLL), both in nats, and the agreement of first choices are taken at every "
        "token of the right answer with that answer fed; NLL falls where the variant is less sure of what the parent "
        "gets wrong. Replies are greedy; those that differ part, on average, at the token told. Points lost: "
        "percentage points that the parent answers right more often, with the 95 % bootstrap "
        f"interval over pairs (2000 resamples).{calibration}{escape(speed)}</p>"
        f'<p class="soft">{escape(machine.cpu)}, {machine.cores} cores{memory}{cache}; {escape(machine.system)}; '
        f"{versions}</p>"
    )
