"""The charts of a comparison: drawn once, as PNG files and as SVG that takes the page's colours.

Colours come from Okabe and Ito's palette for all kinds of colour vision, and no chart tells by colour alone: points
have shapes and names, bars stand in the order of their legend.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from bundle.form import Form
from bundle.manifest import ComponentName
from bundle.report import LayerSensitivity, TaskAccuracy
from quant.comparison.label_places import Box, place_labels
from quant.comparison.variants import REFERENCE, Siblings, Variant
from quant.quality.measures import Interval

WIDTH_PX = 430
_SCATTER_HEIGHT_PX = 320
_INK, _SOFT, _LINE, _GROUND = "#1b1f24", "#5b6470", "#d8dce3", "#fefefe"
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0568c", "#a87900", "#3a8fbf", "#6b6b6b")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
COLOURS = {
    _INK: "--ink",
    _SOFT: "--soft",
    _LINE: "--line",
    _GROUND: "--ground",
    **{colour: f"--series-{at}" for at, colour in enumerate(_SERIES)},
}
"""Every colour that is drawn, and the page's variable that stands for it."""

_MOST_LAYERS = 24
"""Bars of a sensitivity chart; the other layers are told in its caption."""
_BARS_SHARE = 0.8
"""Of a task's row; the rest parts it from the next."""
_PNG_DPI = 200
_PX_PER_INCH = 72
"""One unit of the SVG is one pixel of the page, and one point."""


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: Part of the PNG's file name.
        title: What it shows, in a line.
        caption: How to read it.
        figure: Of matplotlib.
    """

    name: str
    title: str
    caption: str
    figure: Any

    def svg(self) -> str:
        """Return the chart as an SVG element with the page's colours and no address of another site."""
        buffer = StringIO()
        with _style():
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return _inline(buffer.getvalue(), self.title)

    def write_png(self, path: Path) -> None:
        """Write the chart on white."""
        with _style():
            self.figure.savefig(path, format="png", dpi=_PNG_DPI, facecolor="white")


@dataclass(frozen=True)
class _Point:
    """One bundle in a scatter chart: where it stands, with intervals, and how it looks."""

    label: str
    x: Interval
    y: Interval
    colour: str
    marker: str
    is_filled: bool


def charts_of(siblings: Siblings) -> list[Chart]:
    """Return every chart that the measurements allow."""
    with _style():
        charts = [_by_size(siblings), _by_speed(siblings), _by_task(siblings), *_by_layer(siblings)]
    return [chart for chart in charts if chart is not None]


def _by_size(siblings: Siblings) -> Chart | None:
    sizes = {each.label: _exactly(each.manifest.weight_bytes / 1e6) for each in siblings.variants}
    points = _points(siblings, {**sizes, REFERENCE: _exactly(siblings.fp32_bytes / 1e6)})
    if not points:
        return None
    front = [point for point in points if point.label in {variant.label for variant in siblings.pareto}]
    caption = (
        "Up and to the left is better. The line joins the variants than which none is both smaller and more often "
        "right. Filled: passes its gates; hollow: fails, or was not gated. Whiskers: 95 % interval of the loss against "
        "fp32 on the same samples."
    )
    return Chart("accuracy-by-size", "Right answers and size", caption, _scatter(points, front, "weights, MB"))


def _by_speed(siblings: Siblings) -> Chart | None:
    speeds = {label: Interval(rate.median, rate.low, rate.high, 1) for label, rate in siblings.speeds.items()}
    points = _points(siblings, speeds)
    if not points:
        return None
    what = "images embedded" if siblings.speed_unit == "images" else "tokens decoded"
    caption = "Up and to the right is better. Whiskers across: quartiles of the rounds; marks as in the chart of sizes."
    return Chart("accuracy-by-speed", "Right answers and speed", caption, _scatter(points, [], f"{what} per second"))


def _points(siblings: Siblings, x: Mapping[str, Interval]) -> list[_Point]:
    points = [
        _Point(variant.label, x[variant.label], _share(variant.accuracy), *_look(siblings, variant))
        for variant in siblings.variants
        if variant.accuracy and variant.label in x
    ]
    if points and siblings.fp32_accuracy is not None and REFERENCE in x:
        points.append(_Point(REFERENCE, x[REFERENCE], _exactly(100 * siblings.fp32_accuracy), _INK, "*", True))
    return points


def _look(siblings: Siblings, variant: Variant) -> tuple[str, str, bool]:
    at = siblings.variants.index(variant)
    return _SERIES[at % len(_SERIES)], _MARKERS[at % len(_MARKERS)], variant.verdict == "passed"


def _share(accuracy: TaskAccuracy) -> Interval:
    """Return a variant's accuracy in %, with the interval of its loss around it."""
    parent = 100 * accuracy.fp32
    return Interval(100 * accuracy.quantized, parent - accuracy.loss_high, parent - accuracy.loss_low, accuracy.n)


def _exactly(value: float) -> Interval:
    return Interval(value, value, value, 1)


def _scatter(points: Sequence[_Point], front: Sequence[_Point], x_label: str) -> Any:
    figure, axes = _new_figure(_SCATTER_HEIGHT_PX)
    if front:
        axes.plot([point.x.mean for point in front], [point.y.mean for point in front], color=_SOFT, lw=1, zorder=1)
    for point in points:
        axes.errorbar(
            *(point.x.mean, point.y.mean),
            xerr=[[point.x.mean - point.x.low], [point.x.high - point.x.mean]],
            yerr=[[max(point.y.mean - point.y.low, 0)], [max(point.y.high - point.y.mean, 0)]],
            color=point.colour,
            elinewidth=1,
            marker=point.marker,
            markersize=11 if point.marker == "*" else 8,
            markerfacecolor=point.colour if point.is_filled else _GROUND,
            markeredgewidth=1.6,
            zorder=3,
        )
    axes.set_xlim(left=0, right=1.08 * max(point.x.high for point in points))
    _spread_y(axes, points)
    axes.set_xlabel(x_label)
    axes.set_ylabel("right answers, %")
    figure.tight_layout(pad=0.6)
    _name(figure, axes, points)
    return figure


def _spread_y(axes: Any, points: Sequence[_Point]) -> None:
    """Show the whole range of accuracies, and at least two points of it."""
    low, high = min(point.y.low for point in points), max(point.y.high for point in points)
    margin = max(0.12 * (high - low), (2 - (high - low)) / 2, 0.3)
    axes.set_ylim(max(low - margin, -4), min(high + margin, 104))


def _name(figure: Any, axes: Any, points: Sequence[_Point]) -> None:
    """Write each point's name beside it, where it covers nothing."""
    figure.canvas.draw()
    to_px = axes.transData.transform
    marks, whiskers = [], []
    for point in points:
        x, y = to_px((point.x.mean, point.y.mean))
        (left, low), (right, high) = to_px((point.x.low, point.y.low)), to_px((point.x.high, point.y.high))
        marks.append(Box.around(x, y, 7))
        whiskers += [Box(x - 1, low, x + 1, high), Box(left, y - 1, right, y + 1)]
    inside = Box(*axes.get_window_extent().extents)
    for point, mark, place in zip(points, marks, place_labels(_names(points), marks, whiskers, inside), strict=True):
        # A point is a pixel at 72 per inch, and unlike one keeps its length at the resolution of a PNG.
        offset = place.left - mark.centre[0], place.bottom - mark.centre[1]
        axes.annotate(
            *(point.label, (point.x.mean, point.y.mean), offset),
            textcoords="offset points",
            fontsize=11,
            color=_INK,
            arrowprops={"arrowstyle": "-", "color": _LINE, "lw": 0.8} if place.distance(mark) > 12 else None,
            zorder=4,
        )


def _names(points: Sequence[_Point]) -> list[str]:
    return [point.label for point in points]


def _by_task(siblings: Siblings) -> Chart | None:
    """Return bars of the loss per task: from 0, which is fp32, so that their length is what was lost."""
    measured = [variant for variant in siblings.variants if variant.accuracy]
    tasks = siblings.tasks
    if not measured:
        return None
    figure, axes = _new_figure(70 + len(tasks) * max(8 * len(measured) + 6, 20) + 18 * ((len(measured) + 2) // 3))
    for at, variant in enumerate(measured):
        offset = (at - (len(measured) - 1) / 2) * _BARS_SHARE / len(measured)
        _add_bars(axes, tasks, variant, offset, _BARS_SHARE / len(measured), _look(siblings, variant)[0])
    axes.axvline(0, color=_INK, lw=1)
    axes.set_yticks(range(len(tasks)), [f"{task} (n {_num(measured, task)})" for task in tasks])
    axes.set_ylim(len(tasks) - 0.45, -0.55)
    axes.set_xlabel("points lost against fp32")
    figure.tight_layout(pad=0.6)
    _legend(figure, axes, [variant.label for variant in measured])
    caption = (
        "Bars: percentage points that a variant answers right less often than fp32; to the left of 0 it is the better "
        "one. Whiskers: 95 % interval over the same samples; n samples without a loss exclude only losses above 3 / n."
    )
    return Chart("loss-by-task", "What each task loses", caption, figure)


def _add_bars(axes: Any, tasks: Sequence[str], variant: Variant, offset: float, height: float, colour: str) -> None:
    found = variant.report.tasks if variant.report else {}
    rows = [(row + offset, found[task]) for row, task in enumerate(tasks) if task in found]
    places, losses = [place for place, _ in rows], [accuracy.loss_points for _, accuracy in rows]
    below = [max(accuracy.loss_points - accuracy.loss_low, 0) for _, accuracy in rows]
    above = [max(accuracy.loss_high - accuracy.loss_points, 0) for _, accuracy in rows]
    axes.barh(places, losses, height=0.85 * height, color=colour, label=variant.label, zorder=2)
    axes.errorbar(losses, places, xerr=[below, above], fmt="none", ecolor=colour, elinewidth=1.2, zorder=3)


def _num(measured: Sequence[Variant], task: str) -> int:
    return next(each.report.tasks[task].n for each in measured if each.report and task in each.report.tasks)


def _by_layer(siblings: Siblings) -> Iterator[Chart]:
    """Yield one chart per component that a sensitivity search looked at."""
    rows = max((report.sensitivity for report in siblings.reports), key=len, default=())
    for component in dict.fromkeys(row.component for row in rows):
        yield _layers_of(component, [row for row in rows if row.component == component])


def _layers_of(component: ComponentName, rows: Sequence[LayerSensitivity]) -> Chart:
    losses_of = {form: {row.layer: row.loss for row in rows if form_label(row.form) == form} for form in _labels(rows)}
    forms = sorted(losses_of, key=lambda form: -sum(losses_of[form].values()))  # the costliest is drawn as bars
    worst = losses_of[forms[0]]
    shown = sorted(worst, key=lambda layer: -worst[layer])[:_MOST_LAYERS]
    figure, axes = _new_figure(84 + 17 * len(shown))
    for at, form in enumerate(forms):
        places = [place for place, layer in enumerate(shown) if layer in losses_of[form]]
        losses = [losses_of[form][shown[place]] for place in places]
        if at == 0:
            axes.barh(places, losses, height=0.7, color=_SERIES[0], label=form, zorder=2)
        else:
            axes.plot(losses, places, _MARKERS[at], color=_SERIES[at % len(_SERIES)], ms=6, ls="", label=form, zorder=3)
    axes.set_yticks(range(len(shown)), [short_layer(layer) for layer in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(left=0)
    is_decoder = component.startswith("decoder")
    axes.set_xlabel("KL, nats per answer token" if is_decoder else "1 - cosine of the output")
    figure.tight_layout(pad=0.6)
    _legend(figure, axes, forms)
    rest = len(worst) - len(shown)
    others = f" The other {rest} layers, none worse, are left out." if rest else ""
    caption = f"One layer at a time in the form named, all others in fp32: what that alone costs.{others}"
    return Chart(f"sensitivity-{component}", f"Which layers of {component} are sensitive", caption, figure)


def form_label(form: Form) -> str:
    """Return a form in words, such as "4-bit b64 gptq"."""
    block = "" if form.block_size is None else f" b{form.block_size}"
    rounding = "" if form.rounding == "rtn" else f" {form.rounding}"
    return f"{form.bits}-bit{block}{rounding}"


def _labels(rows: Sequence[LayerSensitivity]) -> list[str]:
    return list(dict.fromkeys(form_label(row.form) for row in rows))


def short_layer(layer: str) -> str:
    """Return a weight's name without what all share: "3 mlp.up_proj" of "model.layers.3.mlp.up_proj.weight"."""
    name = layer.removesuffix(".weight")
    found = re.search(r"layers\.(\d+)\.(.+)", name)
    return f"{found[1]} {found[2].replace('self_attn', 'attn')}" if found else name.split("model.")[-1][-28:]


def _new_figure(height_px: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_PX / _PX_PER_INCH, height_px / _PX_PER_INCH), dpi=_PX_PER_INCH)
    FigureCanvasAgg(figure)  # measures texts
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=_LINE, lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: Any, axes: Any, names: Sequence[str]) -> None:
    """Write a legend above the plot, in the order of the bars."""
    handles, labels = axes.get_legend_handles_labels()
    drawn = dict(zip(labels, handles, strict=True))
    legend = figure.legend(
        [drawn[name] for name in names], names, loc="upper left", ncols=3, frameon=False, fontsize=11
    )
    height = legend.get_window_extent(figure.canvas.get_renderer()).height / figure.bbox.height
    figure.tight_layout(pad=0.6, rect=(0, 0, 1, 1 - height))


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "pocketvlm",
        "font.family": "DejaVu Sans",
        "font.size": 12,
        "text.color": _INK,
        "axes.edgecolor": _SOFT,
        "axes.labelcolor": _SOFT,
        "xtick.color": _SOFT,
        "ytick.color": _SOFT,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
    }
    with mpl.rc_context(settings):
        yield


def _inline(document: str, title: str) -> str:
    """Return the svg element of a matplotlib document: no doctype, no metadata, colours and font of the page."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    opening = rf'<svg viewBox="\1" role="img" aria-label="{escape(title)}">'
    svg = re.sub(r"<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>", opening, svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"'DejaVu Sans'(?:, [^;\"]+)?", "system-ui, sans-serif", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
