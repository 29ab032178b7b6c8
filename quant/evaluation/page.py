"""An evaluation as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from pages.frame import page, table
from quant.evaluation.report import EvaluationReport, Figure, Shortfall
from quant.evaluation.scorers.table import METRICS

_BAR_PX = 220


def evaluation_page(report: EvaluationReport) -> str:
    """Return the page: what was asked of whom, every figure with its interval, and replies that fell short."""
    title = f"{report.model} on {report.file}"
    body = f"<h1>{escape(title)}</h1>{_facts(report)}<h2>Figures</h2>{_figures(report)}{_shortfalls(report)}"
    return page(title, body)


def _facts(report: EvaluationReport) -> str:
    of = "" if report.num_samples == report.num_rows else f" of {report.num_rows} rows, evenly spread"
    lines = [
        f"Asked: {report.target}",
        f"{report.num_samples} samples{of}, format {report.format}, sha256 {report.file_sha256[:12]}",
        f"In {report.seconds:.1f} s, by PocketVLM {report.made_by}",
    ]
    lines += [f"{name}: {value}" for name, value in report.options.items() if value is not None]
    if report.num_refused:
        lines.append(f"{report.num_refused} questions were not taken by the model, and count as wrong")
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _figures(report: EvaluationReport) -> str:
    note = (
        '<p class="soft">The bar spans the 95 % interval of the mean, drawn from the samples anew 2,000 times; '
        "the line in it is the mean.</p>"
    )
    return note + table(["task", "measure", "n", "mean", "95 % interval", "0 to 1"], _rows(report))


def _rows(report: EvaluationReport) -> Iterator[list[str]]:
    for task, figures in report.tasks.items():
        for metric, figure in figures.items():
            title = METRICS[metric].title if metric in METRICS else metric
            interval = f"{figure.low:.3f} to {figure.high:.3f}"
            cells = [escape(task), escape(title), str(figure.n), f"{figure.mean:.3f}", interval]
            yield [*cells, _bar(figure)]


def _bar(figure: Figure) -> str:
    """Return an interval between 0 and 1 as a drawing; nothing of measures that go beyond."""
    if figure.high > 1:
        return ""
    low, mean, high = (_BAR_PX * value for value in (figure.low, figure.mean, figure.high))
    return (
        f'<svg viewBox="0 0 {_BAR_PX} 12" width="{_BAR_PX}" height="12" style="width:{_BAR_PX}px" role="img" '
        f'aria-label="{figure.low:.3f} to {figure.high:.3f}">'
        f'<rect x="0" y="5" width="{_BAR_PX}" height="2" fill="var(--line)"/>'
        f'<rect x="{low:.1f}" y="2" width="{max(high - low, 1):.1f}" height="8" fill="var(--series-0)" opacity="0.45"/>'
        f'<rect x="{min(mean, _BAR_PX - 2):.1f}" y="0" width="2" height="12" fill="var(--series-0)"/></svg>'
    )


def _shortfalls(report: EvaluationReport) -> str:
    if not report.shortfalls:
        return ""
    rows = [_shortfall(each) for each in report.shortfalls]
    return f"<h2>Replies that fell short</h2>{table(['row', 'mark', 'asked, right and said'], rows, prose=2)}"


def _shortfall(each: Shortfall) -> list[str]:
    said = f"not taken: {each.refused}" if each.refused else each.reply or "(nothing)"
    told = f"{escape(each.question)}<small>right: {escape(each.right)}</small><small>said: {escape(said)}</small>"
    return [escape(each.place.rsplit("/", 1)[-1]), f"{each.mark:.2f}", told]
