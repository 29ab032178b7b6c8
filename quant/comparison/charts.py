"""The charts of a comparison.

None tells by colour alone: points have shapes and names, bars stand in the order of their legend.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from bundle.form import Form
from bundle.manifest import ComponentName
from bundle.report import LayerSensitivity, TaskAccuracy
from pages.drawing import Drawing, Line, Part, Shape, elided, rectangle
from pages.marks import OUTLINES, SQUARE, STAR, Outline, mark
from pages.palette import SERIES, Colour
from pages.plot import Axis, Entry, Plot
from quant.comparison.loss_charts import loss_charts
from quant.comparison.scatter import Chart, Front, Look, Point, Span, look_of, scatter
from quant.comparison.variants import REFERENCE, Siblings

_SCATTER_PX = 240.0
_MOST_TASK_LETTERS = 22
"""Of a task's name, before its n."""
_MOST_LAYERS = 24
"""Bars of a sensitivity chart; the other layers are told in its caption."""
_LAYER_PX = 17.0
_BARS_SHARE = 0.8
"""Of a task's row; the rest parts it from the next."""


def charts_of(siblings: Siblings) -> list[Chart]:
    """Return every chart that the measurements allow."""
    of_answers = [_by_size(siblings), _by_speed(siblings), _by_task(siblings)]
    return [*loss_charts(siblings), *(chart for chart in of_answers if chart), *_by_layer(siblings)]


def _by_size(siblings: Siblings) -> Chart | None:
    sizes = {each.label: Span.exactly(each.manifest.weight_bytes / 1e6) for each in siblings.variants}
    points = _points(siblings, {**sizes, REFERENCE: Span.exactly(siblings.fp32_bytes / 1e6)})
    if not points:
        return None
    front = [point for point in points if point.label in {variant.label for variant in siblings.pareto}]
    caption = (
        "Up and to the left is better. The line joins the variants than which none is both smaller and more often "
        "right. Filled: passes its gates; hollow: fails, or was not gated. Whiskers: 95 % interval of the loss against "
        "fp32 on the same samples."
    )
    return Chart("accuracy-by-size", caption, _scatter("Right answers and size", points, front, "weights, MB"))


def _by_speed(siblings: Siblings) -> Chart | None:
    speeds = {label: Span.of(rate) for label, rate in siblings.speeds.items()}
    points = _points(siblings, speeds)
    if not points:
        return None
    what = "images embedded" if siblings.speed_unit == "images" else "tokens decoded"
    caption = "Up and to the right is better. Whiskers across: quartiles of the rounds; marks as in the chart of sizes."
    drawing = _scatter("Right answers and speed", points, [], f"{what} per second")
    return Chart("accuracy-by-speed", caption, drawing)


def _points(siblings: Siblings, x: Mapping[str, Span]) -> list[Point]:
    points = [
        Point(variant.label, x[variant.label], _share(variant.accuracy), look_of(siblings, variant))
        for variant in siblings.variants
        if variant.accuracy and variant.label in x
    ]
    if points and siblings.fp32_accuracy is not None and REFERENCE in x:
        star = Look("ink", STAR, is_filled=True)
        points.append(Point(REFERENCE, x[REFERENCE], Span.exactly(100 * siblings.fp32_accuracy), star))
    return points


def _share(accuracy: TaskAccuracy) -> Span:
    """Return a variant's accuracy in %, with the interval of its loss around it."""
    parent = 100 * accuracy.fp32
    return Span(100 * accuracy.quantized, parent - accuracy.loss_high, parent - accuracy.loss_low)


def _scatter(title: str, points: Sequence[Point], front: Sequence[Point], x_title: str) -> Drawing:
    x_axis = Axis.between(x_title, 0.0, 1.08 * max(point.x.high for point in points))
    return scatter(title, Plot(x_axis, _around(points), _SCATTER_PX), points, [Front(front, "soft")])


def _around(points: Sequence[Point]) -> Axis:
    """Return an axis of the whole range of accuracies, and at least two points of it."""
    low, high = min(point.y.low for point in points), max(point.y.high for point in points)
    margin = max(0.12 * (high - low), (2 - (high - low)) / 2, 0.3)
    return Axis.between("right answers, %", max(low - margin, -4), min(high + margin, 104))


def _by_task(siblings: Siblings) -> Chart | None:
    """Return bars of the loss per task: from 0, which is fp32, so that their length is what was lost."""
    measured = [(variant, look_of(siblings, variant).colour) for variant in siblings.variants if variant.accuracy]
    if not measured:
        return None
    found = [variant.report.tasks for variant, _ in measured if variant.report]
    nums = {task: next(tasks[task].n for tasks in found if task in tasks) for task in siblings.tasks}
    plot = Plot(
        _around_zero([accuracy for tasks in found for accuracy in tasks.values()]),
        Axis.of_rows([f"{elided(task, _MOST_TASK_LETTERS)} (n {n})" for task, n in nums.items()]),
        height_px=len(nums) * max(8 * len(measured) + 6, 20),
        legend=tuple(Entry(variant.label, colour, SQUARE) for variant, colour in measured),
    )
    parts: list[Part] = []
    for at, (tasks, (_, colour)) in enumerate(zip(found, measured, strict=True)):
        offset = (at - (len(measured) - 1) / 2) * _BARS_SHARE / len(measured)
        for row, task in enumerate(nums):
            if task in tasks:
                parts += _bar(plot, row + offset, 0.85 * _BARS_SHARE / len(measured), tasks[task], colour)
    zero = Line([plot.at(0, plot.y.start), plot.at(0, plot.y.end)], "ink")
    caption = (
        "Bars: percentage points that a variant answers right less often than fp32; to the left of 0 it is the better "
        "one. Whiskers: 95 % interval over the same samples; n samples without a loss exclude only losses above 3 / n."
    )
    return Chart("loss-by-task", caption, plot.drawing("What each task loses", [*parts, zero]))


def _around_zero(accuracies: Sequence[TaskAccuracy]) -> Axis:
    """Return an axis of losses that holds every whisker and 0."""
    low = min(0.0, *(accuracy.loss_low for accuracy in accuracies))
    high = max(0.0, *(accuracy.loss_high for accuracy in accuracies))
    margin = max(0.05 * (high - low), 0.25)
    return Axis.between("points lost against fp32", low - margin, high + margin)


def _bar(plot: Plot, row: float, height: float, loss: TaskAccuracy, colour: Colour) -> Iterator[Part]:
    (left, top), (right, bottom) = plot.at(0, row - height / 2), plot.at(loss.loss_points, row + height / 2)
    yield Shape(rectangle(left, top, right, bottom), colour)
    yield Line([plot.at(loss.loss_low, row), plot.at(loss.loss_high, row)], colour, 1.2)


def _by_layer(siblings: Siblings) -> Iterator[Chart]:
    """Yield one chart per component that a sensitivity search looked at."""
    rows = max((report.sensitivity for report in siblings.reports), key=len, default=())
    for component in dict.fromkeys(row.component for row in rows):
        yield _layers_of(component, [row for row in rows if row.component == component])


def _layers_of(component: ComponentName, rows: Sequence[LayerSensitivity]) -> Chart:
    labels = dict.fromkeys(form_label(row.form) for row in rows)
    losses_of = {form: {row.layer: row.loss for row in rows if form_label(row.form) == form} for form in labels}
    forms = sorted(losses_of, key=lambda form: -sum(losses_of[form].values()))  # the costliest is drawn as bars
    worst = losses_of[forms[0]]
    shown = sorted(worst, key=lambda layer: -worst[layer])[:_MOST_LAYERS]
    unit = "KL, nats per answer token" if component.startswith("decoder") else "1 - cosine of the output"
    plot = Plot(
        Axis.from_zero(unit, max(row.loss for row in rows if row.layer in shown)),
        Axis.of_rows([short_layer(layer) for layer in shown]),
        height_px=_LAYER_PX * len(shown),
        legend=tuple(Entry(form, SERIES[at % len(SERIES)], _outline(at)) for at, form in enumerate(forms)),
    )
    parts = [
        _loss(plot, row, losses_of[form][layer], at)
        for at, form in enumerate(forms)
        for row, layer in enumerate(shown)
        if layer in losses_of[form]
    ]
    rest = len(worst) - len(shown)
    others = f" The other {rest} layers, none worse, are left out." if rest else ""
    caption = f"One layer at a time in the form named, all others in fp32: what that alone costs.{others}"
    drawing = plot.drawing(f"Which layers of {component} are sensitive", parts)
    return Chart(f"sensitivity-{component}", caption, drawing)


def _outline(at: int) -> Outline:
    """Return how a form is drawn: the first as bars, the others as points upon them."""
    others = [outline for outline in OUTLINES if outline is not SQUARE]
    return others[(at - 1) % len(others)] if at else SQUARE


def _loss(plot: Plot, row: int, loss: float, at: int) -> Shape:
    colour = SERIES[at % len(SERIES)]
    if at:
        return mark(_outline(at), plot.at(loss, row), colour, radius_px=3.5)
    (left, top), (right, bottom) = plot.at(0, row - 0.35), plot.at(loss, row + 0.35)
    return Shape(rectangle(left, top, right, bottom), colour)


def form_label(form: Form) -> str:
    """Return a form in words, such as "4-bit b64 gptq"."""
    block = "" if form.block_size is None else f" b{form.block_size}"
    rounding = "" if form.rounding == "rtn" else f" {form.rounding}"
    return f"{form.bits}-bit{block}{rounding}"


def short_layer(layer: str) -> str:
    """Return a weight's name without what all share: "3 mlp.up_proj" of "model.layers.3.mlp.up_proj.weight"."""
    name = layer.removesuffix(".weight")
    found = re.search(r"layers\.(\d+)\.(.+)", name)
    return f"{found[1]} {found[2].replace('self_attn', 'attn')}" if found else name.split("model.")[-1][-28:]
