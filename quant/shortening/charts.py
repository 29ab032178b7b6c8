"""Charts of what is lost by how much is left out: one per stage and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pages.drawing import Line, Part, Shape
from pages.marks import OUTLINES, Outline, mark
from pages.palette import SERIES, Colour
from pages.plot import Axis, Entry, Plot
from quant.comparison.scatter import Chart
from quant.quality.measures import Interval
from quant.shortening.figures import UNIFORM, Figure, figures_of
from quant.shortening.record import Record
from quant.shortening.ways import BASELINES, STAGES, Stage

_HEIGHT_PX = 300.0
_BAND_OPACITY = 0.16
_WHOLE = "all of it"
_BASELINE_COLOURS: Mapping[str, Colour] = dict(zip(BASELINES, ("ink", "soft"), strict=True))


def chart_of(record: Record, stage: Stage) -> Chart | None:
    """Return a stage's chart; None where nothing of it was measured."""
    figures = list(figures_of(record, stage))
    if not figures:
        return None
    methods = list(dict.fromkeys(figure.way.method for figure in figures))
    looks = {method: _look(method, at) for at, method in enumerate(methods)}
    plot = Plot(
        Axis.between("share that stays, %", 0.0, 100.0),
        _upright(record, figures),
        _HEIGHT_PX,
        tuple(Entry(method, *looks[method]) for method in methods),
    )
    whole = _whole_value(record, figures)
    parts = _band(plot, figures)
    if whole is not None:
        parts.append(Line([plot.at(0, whole), plot.at(100, whole)], "soft", is_dashed=True))
    for method in methods:
        parts += _curve(plot, [figure for figure in figures if figure.way.method == method], looks[method])
    higher = "Up is better" if record.has_accuracy else "Down is better"
    against = (
        f"Shaded: the 95 % interval of {UNIFORM}, the choice that spends no thought"
        if UNIFORM in methods
        else f"What each is beside {UNIFORM} before the decoder, at the same share, the table's colours tell"
    )
    caption = (
        f"{higher}. Dashed: {_WHOLE}. {against}. Differences on the same questions, surer than these, are in the table."
    )
    return Chart(f"{record.model}-{stage}", caption, plot.drawing(STAGES[stage], parts))


def _look(method: str, at: int) -> tuple[Colour, Outline]:
    return _BASELINE_COLOURS.get(method, SERIES[at % len(SERIES)]), OUTLINES[at % len(OUTLINES)]


def _upright(record: Record, figures: Sequence[Figure]) -> Axis:
    low, high = min(figure.value.mean for figure in figures), max(figure.value.mean for figure in figures)
    if record.has_accuracy:
        return Axis.between("right answers, %", max(low - 4, 0.0), 102.0)
    return Axis.from_zero("KL to the whole prompt, nats per answer token", max(high, 1e-3))


def _whole_value(record: Record, figures: Sequence[Figure]) -> float | None:
    """Return what the whole prompt comes to: of the questions that were asked of every way."""
    if not record.has_accuracy:
        return 0.0
    values = {round(figure.value.mean + figure.loss.mean, 6) for figure in figures}
    return values.pop() if len(values) == 1 else None


def _band(plot: Plot, figures: Sequence[Figure]) -> list[Part]:
    uniform = sorted((each for each in figures if each.way.method == UNIFORM), key=lambda each: each.way.share)
    if len(uniform) < 2:
        return []
    low = [plot.at(100 * each.way.share, each.value.low) for each in uniform]
    high = [plot.at(100 * each.way.share, each.value.high) for each in reversed(uniform)]
    return [Shape([*low, *high], "soft", opacity=_BAND_OPACITY)]


def _curve(plot: Plot, figures: Sequence[Figure], look: tuple[Colour, Outline]) -> list[Part]:
    colour, outline = look
    places = [
        plot.at(100 * each.way.share, each.value.mean) for each in sorted(figures, key=lambda each: each.way.share)
    ]
    return [Line(places, colour, 1.6), *(mark(outline, place, colour, radius_px=4.0) for place in places)]


def told(interval: Interval, unit: str = "") -> str:
    """Return a mean and its interval: "93.1 (90.0 to 95.6)"."""
    digits = 1 if unit != "nats" else 4
    return f"{interval.mean:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
