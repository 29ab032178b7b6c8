"""Bits where they matter: one form per layer, chosen from the loss that each form was measured to cause.

The loss of a plan is predicted as the sum of the losses of its layers, each measured with every other layer in float32.
That is an approximation: errors of several layers meet, and with coarse forms the true loss may be a multiple of the
sum. So whoever applies a plan measures it again and prints both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.manifest import ComponentName
from bundle.report import LayerSensitivity


@dataclass(frozen=True)
class BitPlan:
    """A form for each layer of a table.

    Attributes:
        forms: By component and layer; None: float32.
        loss: The sum of the layers' losses.
        weight_bytes: Of these layers together.
    """

    forms: Mapping[ComponentName, Mapping[str, Form | None]]
    loss: float
    weight_bytes: int


@dataclass(frozen=True)
class _Option:
    """A form of a layer; `form` None is float32."""

    form: Form | None
    weight_bytes: int
    loss: float


@dataclass(frozen=True)
class _Step:
    """A layer taken from one option to the next larger one.

    Attributes:
        layer: Its component and name.
        to: The option reached.
        more_bytes: What that costs.
        less_loss: What that gains.
    """

    layer: tuple[ComponentName, str]
    to: _Option
    more_bytes: int
    less_loss: float


def choose(
    table: Sequence[LayerSensitivity], *, max_bytes: int | None = None, max_loss: float | None = None
) -> BitPlan:
    """Return the smallest plan of at most `max_loss`, or the plan of least loss of at most `max_bytes`.

    Every layer starts in its smallest form and is raised, up to float32, where a byte buys the most loss. Forms that
    a mixture of two others beats are never taken, so steps come with falling worth and the plan misses the best one
    by less than one step of one layer: of its bytes under `max_loss`, of its loss under `max_bytes`.

    Args:
        table: Every layer in every form that it may take.
        max_bytes: For the weights of the table's layers together.
        max_loss: In the unit of the table's measure. Exactly one of the two limits is given.

    Raises:
        QuantizationError: No table, two measures in one table, two limits or none, or a limit that no plan keeps; the
            message says what the nearest one reaches.
    """
    if (max_bytes is None) == (max_loss is None):
        raise QuantizationError("a plan keeps one limit: give either max_bytes or max_loss")
    ladders = _ladders(table)
    chosen = {layer: options[0] for layer, options in ladders.items()}
    steps = sorted(_steps(ladders), key=lambda step: (-step.less_loss / step.more_bytes, step.layer))
    if max_bytes is not None:
        _raise_within(chosen, steps, max_bytes)
    elif max_loss is not None:
        _raise_until(chosen, steps, max_loss)
    return _plan_of(chosen)


def _ladders(table: Sequence[LayerSensitivity]) -> dict[tuple[ComponentName, str], list[_Option]]:
    """Return the options of each layer that are worth their bytes, the smallest first and float32 last."""
    measures = sorted({row.measure for row in table})
    if len(measures) != 1:
        found = " and ".join(measures) or "no layer"
        raise QuantizationError(f"a plan adds losses of one measure; the table holds {found}. Plan each graph alone")
    options: dict[tuple[ComponentName, str], list[_Option]] = {}
    for row in table:
        layer = options.setdefault((row.component, row.layer), [_Option(None, row.fp32_bytes, 0.0)])
        layer.append(_Option(row.form, row.weight_bytes, row.loss))
    return {layer: _lower_hull(found) for layer, found in options.items()}


def _lower_hull(options: Sequence[_Option]) -> list[_Option]:
    """Return the options on the lower convex hull of loss over bytes, as far as loss falls."""
    hull: list[_Option] = []
    for option in sorted(options, key=lambda each: (each.weight_bytes, each.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _worth(hull[-2], hull[-1]) <= _worth(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _worth(smaller: _Option, larger: _Option) -> float:
    """Return the loss that a byte buys."""
    return (smaller.loss - larger.loss) / (larger.weight_bytes - smaller.weight_bytes)


def _steps(ladders: Mapping[tuple[ComponentName, str], Sequence[_Option]]) -> Iterator[_Step]:
    for layer, options in ladders.items():
        for low, high in pairwise(options):
            yield _Step(layer, high, high.weight_bytes - low.weight_bytes, low.loss - high.loss)


def _raise_within(chosen: dict[tuple[ComponentName, str], _Option], steps: Sequence[_Step], max_bytes: int) -> None:
    """Take the steps that fit, the most worthy first; a layer whose step does not fit stays where it is."""
    left = max_bytes - sum(option.weight_bytes for option in chosen.values())
    if left < 0:
        raise QuantizationError(
            f"no plan takes at most {max_bytes} bytes: the smallest forms of the {len(chosen)} layers take "
            f"{max_bytes - left}. Allow more bytes, or forms of fewer bits"
        )
    stuck = set()
    for step in steps:
        if step.layer not in stuck and step.more_bytes <= left:
            chosen[step.layer] = step.to
            left -= step.more_bytes
        else:
            stuck.add(step.layer)


def _raise_until(chosen: dict[tuple[ComponentName, str], _Option], steps: Sequence[_Step], max_loss: float) -> None:
    """Take steps, the most worthy first, until the loss is low enough; then take back those that it does not need."""
    loss = sum(option.loss for option in chosen.values())
    taken = []
    for step in steps:
        if loss <= max_loss:
            break
        taken.append((step, chosen[step.layer]))
        chosen[step.layer] = step.to
        loss = sum(option.loss for option in chosen.values())
    if not loss <= max_loss:  # a limit that is not a number is not kept either
        raise QuantizationError(f"no plan keeps a loss of {max_loss:g}: the least that these forms reach is {loss:.3g}")
    for step, before in reversed(taken):
        if chosen[step.layer] is step.to and loss + step.less_loss <= max_loss:
            chosen[step.layer] = before
            loss = sum(option.loss for option in chosen.values())


def _plan_of(chosen: Mapping[tuple[ComponentName, str], _Option]) -> BitPlan:
    forms: dict[ComponentName, dict[str, Form | None]] = {}
    for (component, layer), option in chosen.items():
        forms.setdefault(component, {})[layer] = option.form
    options = chosen.values()
    return BitPlan(forms, sum(each.loss for each in options), sum(each.weight_bytes for each in options))
