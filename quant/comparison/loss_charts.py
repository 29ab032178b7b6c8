"""What bits cost a language model: KL divergence against bytes and against speed, other systems' files beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bundle.report import TeacherForced
from pages.marks import CIRCLE, LOZENGE
from pages.palette import SERIES, Colour
from pages.plot import Axis, Entry, Plot
from quant.comparison.rivals import Rival, Rivals
from quant.comparison.scatter import Chart, Front, Level, Look, Point, Span, look_of, scatter
from quant.comparison.variants import REFERENCE, Siblings, Variant

_HEIGHT_PX = 380.0
_KL_GATE = "kl_mean"
_LEAST_KL = 1e-5
"""Nats: what lies below stands at the lower edge. Sums in another order, with a float16 cache, differ by as much."""
_RIVAL_COLOURS: tuple[Colour, ...] = ("ink", "soft")
_OURS = Entry("PocketVLM", SERIES[0], CIRCLE)
_Y_TITLE = "KL to fp32, nats per answer token"


def loss_charts(siblings: Siblings) -> list[Chart]:
    """Return the charts that the measurements allow: none where no variant was measured with answers fed."""
    return [*_by_size(siblings), *_by_speed(siblings)]


def _by_size(siblings: Siblings) -> Iterator[Chart]:
    ours = [
        Point(variant.label, _megabytes(variant.manifest.language_model_bytes), kl, _own_look(siblings, variant))
        for variant, kl in _measured(siblings)
    ]
    if not ours:
        return
    points, fronts = list(ours), [Front(_front(ours), SERIES[0])]
    for each, look in _systems(siblings):
        theirs = [_theirs(rival, _megabytes(rival.weight_bytes), look) for rival in each.rivals]
        points += theirs
        fronts.append(Front(_front([point for point in theirs if point.look.is_filled]), look.colour))
    x_axis = _across("language model, MB", points)
    caption = (
        "Down and to the left is better. Lines join the points than which none is both smaller and nearer to fp32. "
        f"Bytes: token table and decoders, without the vision tower. {_marks(siblings)}"
    )
    drawing = scatter("Loss and size", _plot(x_axis, points, siblings), points, fronts, _levels(siblings))
    yield Chart("loss-by-size", caption, drawing)


def _by_speed(siblings: Siblings) -> Iterator[Chart]:
    speeds = siblings.speed_ratios or siblings.speeds
    ours = [
        Point(variant.label, Span.of(speeds[variant.label]), kl, _own_look(siblings, variant))
        for variant, kl in _measured(siblings)
        if variant.label in speeds
    ]
    if not ours:
        return
    theirs = [
        _theirs(rival, Span.of(rival.decode.ratio), look)
        for each, look in _systems(siblings)
        for rival in each.rivals
        if rival.decode and siblings.speed_ratios
    ]
    unit = f"tokens decoded per second, times {REFERENCE}'s" if siblings.speed_ratios else "tokens decoded per second"
    points = [*ours, *theirs]
    x_axis = _across(unit, points)
    caption = (
        "Down and to the right is better. Whiskers across: quartiles of the turns. Other systems took turns with the "
        f"same fp32 bundle in a run of their own. {_marks(siblings)}"
    )
    yield Chart(
        "loss-by-speed",
        caption,
        scatter("Loss and speed", _plot(x_axis, points, siblings), points, levels=_levels(siblings)),
    )


def _marks(siblings: Siblings) -> str:
    """Return how to read marks and dashed lines."""
    limits: dict[float, list[str]] = {}
    for variant, limit in _limits(siblings):
        limits.setdefault(limit, []).append(variant.label)
    told = "; ".join(f"{limit:g} for {', '.join(labels)}" for limit, labels in sorted(limits.items()))
    dashed = f" Dashed: limits of the KL gate, {told}." if told else ""
    kept = [rival.name for each in siblings.rivals for rival in each.rivals if rival.keeps_weights]
    hollow = f" Hollow {', '.join(kept)}: the parent's weights lie on that grid, so none was rounded." if kept else ""
    return (
        "Whiskers upright: 95 % interval over questions. Filled: passes its gates; hollow: fails, or was not gated."
        f"{hollow}{dashed}"
    )


def _limits(siblings: Siblings) -> Iterator[tuple[Variant, float]]:
    for variant in siblings.variants:
        yield from ((variant, gate.limit) for gate in variant.manifest.gates if gate.name == _KL_GATE)


def _measured(siblings: Siblings) -> Iterator[tuple[Variant, Span]]:
    for variant in siblings.variants:
        if variant.report and variant.report.teacher_forced:
            yield variant, _kl(variant.report.teacher_forced)


def _own_look(siblings: Siblings, variant: Variant) -> Look:
    """Return the look of all charts, or one for all of ours where systems are told apart."""
    own = look_of(siblings, variant)
    return Look(_OURS.colour, _OURS.outline, own.is_filled) if siblings.rivals else own


def _systems(siblings: Siblings) -> Iterator[tuple[Rivals, Look]]:
    for at, each in enumerate(siblings.rivals):
        yield each, Look(_RIVAL_COLOURS[at % len(_RIVAL_COLOURS)], LOZENGE, is_filled=True)


def _theirs(rival: Rival, x: Span, look: Look) -> Point:
    """Return the point of another system's file: hollow where it says nothing of what its bits cost."""
    own = Look(look.colour, look.outline, is_filled=not rival.keeps_weights)
    return Point(rival.name, x, _kl(rival.teacher_forced), own)


def _kl(forced: TeacherForced) -> Span:
    low, high = forced.kl_interval or (forced.kl_mean, forced.kl_mean)
    return Span(*(max(value, _LEAST_KL) for value in (forced.kl_mean, low, high)))


def _megabytes(num_bytes: int) -> Span:
    return Span.exactly(num_bytes / 1e6)


def _front(points: Sequence[Point]) -> list[Point]:
    """Return the points than which none is both smaller and lower, the smallest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.x.value, each.y.value)):
        if not front or point.y.value < front[-1].y.value:
            front.append(point)
    return front


def _levels(siblings: Siblings) -> list[Level]:
    return [Level(limit, f"limit {limit:g}") for limit in sorted({limit for _, limit in _limits(siblings)})]


def _across(title: str, points: Sequence[Point]) -> Axis:
    """Return an axis around all points: what counts is how they lie to each other, not how far from nothing."""
    low, high = min(point.x.low for point in points), max(point.x.high for point in points)
    margin = 0.1 * (high - low) or 0.1 * high
    return Axis.between(title, max(low - margin, 0.0), high + margin)


def _plot(x_axis: Axis, points: Sequence[Point], siblings: Siblings) -> Plot:
    values = [
        *(end for point in points for end in (point.y.low, point.y.high)),
        *(level.value for level in _levels(siblings)),
    ]
    y_axis = Axis.logarithmic(_Y_TITLE, min(values) / 1.6, max(values) * 1.6)
    ours = [_OURS] if siblings.rivals else []
    theirs = [Entry(each.system, look.colour, look.outline) for each, look in _systems(siblings)]
    return Plot(x_axis, y_axis, _HEIGHT_PX, legend=(*ours, *theirs))
