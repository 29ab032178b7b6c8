"""The page of what shorter prompts cost: every method against the share that stays, beside doing it without thought."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from pages.file import write_whole
from pages.frame import page, table
from pages.png import write_png
from pages.svg import svg
from quant.comparison.scatter import Chart
from quant.shortening.charts import chart_of, told
from quant.shortening.costs import Costs, costs_section
from quant.shortening.figures import UNIFORM, Figure, figures_of
from quant.shortening.record import Record
from quant.shortening.ways import STAGES, Stage

_CLASSES = {"better": "good", "worse": "bad"}
_TASK_SHARES = (0.5, 0.25)


def write_page(path: Path, records: Sequence[Record], costs: Sequence[Costs]) -> list[Path]:
    """Write the page, and each of its charts as a PNG file beside it; return what was written.

    Args:
        path: Of the page.
        records: What was measured of each model.
        costs: What was timed; none are fine.

    Raises:
        OSError: A file cannot be written.
    """
    charts = [[(stage, chart_of(record, stage)) for stage in STAGES] for record in records]
    sections = [
        _section(record, [(stage, chart) for stage, chart in drawn if chart])
        for record, drawn in zip(records, charts, strict=True)
    ]
    title = f"What shorter prompts cost: {', '.join(record.model for record in records)}"
    body = f"<h1>{escape(title)}</h1>{_method()}{''.join(sections)}{costs_section(costs)}"
    write_whole(path, page(title, body).encode())
    written = [path]
    for chart in (chart for drawn in charts for _, chart in drawn if chart):
        written.append(path.with_name(f"{path.stem}-{chart.name}.png"))
        write_png(chart.drawing, written[-1])
    return written


def sentences_of(record: Record) -> list[str]:
    """Return, of every stage and share, what did best and what did worse than the uniform choice."""
    found = []
    for stage, name in STAGES.items():
        figures = list(figures_of(record, stage))
        for share in sorted({figure.way.share for figure in figures}, reverse=True):
            found.append(_sentence(record, name, [figure for figure in figures if figure.way.share == share]))
    return found


def _sentence(record: Record, name: str, figures: Sequence[Figure]) -> str:
    best = min(figures, key=lambda figure: figure.loss.mean)
    least = [figure.way.method for figure in figures if figure.loss.mean == best.loss.mean]
    unit = "points lost" if record.has_accuracy else "nats of KL"
    digits = 1 if record.has_accuracy else 4
    worse = [figure.way.method for figure in figures if figure.verdict == "worse"]
    better = [figure.way.method for figure in figures if figure.verdict == "better"]
    parts = [
        f"{name}, {best.way.share:.0%} kept: least is lost by {' and '.join(least)}, "
        f"{best.loss.mean:.{digits}f} {unit} "
        f"(95 % interval {best.loss.low:.{digits}f} to {best.loss.high:.{digits}f})"
    ]
    parts.append(f"better than {UNIFORM}: {', '.join(better)}" if better else f"none is surely better than {UNIFORM}")
    if worse:
        parts.append(f"worse than {UNIFORM}: {', '.join(worse)}")
    return "; ".join(parts)


def _method() -> str:
    return (
        '<p class="soft">Every question is answered once with all of its prompt and once in every way, by the same '
        "weights. Green: surely better than the uniform choice at the same share, on the same questions, at 95 %. Red: "
        "surely worse. Many comparisons are made: of twenty that differ in nothing, one comes out coloured. What a KV "
        "policy drops, it drops once the prompt was read: the first token of an answer is the whole prompt's, and "
        "answers of one token lose nothing.</p>"
    )


def _section(record: Record, drawn: Sequence[tuple[Stage, Chart]]) -> str:
    answers = "right answers" if record.has_accuracy else "KL to the same model with the whole prompt"
    whole = f"; with all of it {_mean_right(record):.1f} % are right" if record.has_accuracy else ""
    head = (
        f"<h2>{escape(record.model)}</h2><p>{len(record.tasks)} questions ({escape(record.source)}): "
        f"{escape(answers)}{whole}.</p>"
    )
    said = "".join(f"<li>{escape(sentence)}.</li>" for sentence in sentences_of(record))
    parts = [f"<ul>{said}</ul>"]
    for stage, chart in drawn:
        figures = list(figures_of(record, stage))
        parts.append(
            f"<figure><h3>{escape(chart.drawing.title)}</h3>{svg(chart.drawing)}"
            f"<figcaption>{escape(chart.caption)}</figcaption></figure>{_by_share(record, figures)}"
            f"{_by_task(record, stage)}"
        )
    return f"<section>{head}{''.join(parts)}{_lacking(record)}</section>"


def _mean_right(record: Record) -> float:
    return 100 * sum(record.whole.right) / len(record.whole.right)


def _by_share(record: Record, figures: Sequence[Figure]) -> str:
    shares = sorted({figure.way.share for figure in figures}, reverse=True)
    methods = list(dict.fromkeys(figure.way.method for figure in figures))
    at = {(figure.way.method, figure.way.share): figure for figure in figures}
    rows = [
        [escape(method), *(_cell(record, at[method, share]) if (method, share) in at else "" for share in shares)]
        for method in methods
    ]
    unit = "right answers, %" if record.has_accuracy else "KL, nats"
    return table((unit, *(f"{share:.0%} kept" for share in shares)), rows)


def _cell(record: Record, figure: Figure) -> str:
    """Return the value, and under it what it is behind the uniform choice; the same choice of tokens for KL."""
    unit = "" if record.has_accuracy else "nats"
    mark = _CLASSES.get(figure.verdict)
    value = told(figure.value, unit)
    shown = f'<span class="{mark}">{value}</span>' if mark else value
    if not record.has_accuracy:
        return f"{shown}<small>same first choice {figure.top1.mean:.1%}</small>"
    return shown


def _by_task(record: Record, stage: Stage) -> str:
    tasks = list(dict.fromkeys(record.tasks))
    parts = []
    for share in _TASK_SHARES:
        found = {
            (figure.way.method, task): figure
            for task in tasks
            for figure in figures_of(record, stage, task)
            if figure.way.share == share
        }
        methods = list(dict.fromkeys(method for method, _ in found))
        if methods and len(tasks) > 1:
            rows = [
                [escape(method), *(_cell(record, found[method, t]) if (method, t) in found else "" for t in tasks)]
                for method in methods
            ]
            parts.append(
                f"<details><summary>{share:.0%} kept, by task</summary>{table(('task', *tasks), rows)}</details>"
            )
    return "".join(parts)


def _lacking(record: Record) -> str:
    if not record.lacking:
        return ""
    items = "".join(f"<li>{escape(each.method)}: {escape(each.reason)}</li>" for each in record.lacking)
    return f"<details><summary>Not measured</summary><ul>{items}</ul></details>"
