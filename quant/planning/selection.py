"""Which of its candidates a layer takes: one decision for all layers of a kind in a graph, which noise does not turn.

Every layer begins with its default, the first of its candidates. An alternative is taken by all layers that can hold
it, or by none, so a plan has one form where layers have one purpose, and a few small layers turn nothing: what counts
is the sum over the graph. It must save a good part of that sum, and beyond doubt: what it *usually* takes is held
against the *least* that the defaults take, for what else runs on a machine only adds time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bundle.report import FormDecision, FormTime, ShapeTimes
from quant.planning.layer_times import LayerTimes
from quant.planning.plan import Choice

WORTH_CHANGING = 0.7
"""An alternative may take at most this share of the defaults' time: docs/decisions/0010."""


@dataclass(frozen=True)
class Candidates:
    """What one layer may become.

    Attributes:
        num_inputs: K.
        num_outputs: N.
        rows: That meet it.
        choices: Its default first, then what is preferred.
    """

    num_inputs: int
    num_outputs: int
    rows: float
    choices: tuple[Choice, ...]

    def taking(self, choice: Choice | None) -> Choice:
        """Return a choice where the layer can hold it, else its default."""
        return choice if choice in self.choices else self.choices[0]


@dataclass(frozen=True)
class Course:
    """What all layers together take.

    Attributes:
        choice: Of every layer that can hold it; None: each has its default.
        label: It in words.
        least_ms: The least that was seen.
        usual_ms: What is usually the least.
    """

    choice: Choice | None
    label: str
    least_ms: float
    usual_ms: float


@dataclass(frozen=True)
class Decision:
    """What layers that are decided together become.

    Attributes:
        layers: All of them.
        courses: That were weighed, the defaults first.
        chosen: One of them.
        times: That decided.
    """

    layers: tuple[Candidates, ...]
    courses: tuple[Course, ...]
    chosen: Course
    times: LayerTimes

    @property
    def gain(self) -> str:
        """Return in words what the chosen course saves, without figures, which are others every day."""
        return f"with all such layers less than {WORTH_CHANGING:.0%} of the time of {self.courses[0].label}"

    @property
    def doubt(self) -> str:
        """Return what noise left open, in words; "" where nothing is."""
        bar_ms = WORTH_CHANGING * self.chosen.least_ms
        open_ones = [each for each in self.courses if each.least_ms <= bar_ms and each is not self.chosen]
        if not open_ones:
            return ""
        shares = ", ".join(
            f"{each.label} takes {each.least_ms / self.chosen.least_ms:.0%} of its time at best and "
            f"{each.usual_ms / self.chosen.least_ms:.0%} usually"
            for each in open_ones
        )
        return f"the machine was too noisy to tell, so {self.chosen.label} is kept: {shares}"

    def told(self, kind: str) -> FormDecision:
        """Return the decision as a report holds it.

        Args:
            kind: Of the layers.
        """
        counted = Counter(self.layers)
        return FormDecision(
            kind=kind,
            num_layers=len(self.layers),
            forms=tuple(_form_time(each.label, each.least_ms, each.usual_ms) for each in self.courses),
            chosen=self.chosen.label,
            doubt=self.doubt,
            shapes=tuple(self._shape(layer, number) for layer, number in counted.items()),
        )

    def _shape(self, layer: Candidates, num_layers: int) -> ShapeTimes:
        return ShapeTimes(
            num_inputs=layer.num_inputs,
            num_outputs=layer.num_outputs,
            rows=layer.rows,
            num_layers=num_layers,
            forms=tuple(
                _form_time(each.label, _ms(layer, each, self.times), _ms(layer, each, self.times.usual))
                for each in layer.choices
            ),
        )


def decide(layers: Sequence[Candidates], times: LayerTimes) -> Decision:
    """Return what layers of a kind become.

    Args:
        layers: At least one; each has candidates.
        times: Of this machine, or built in.
    """
    weighed: dict[tuple[Choice, ...], Choice | None] = {}
    for choice in dict.fromkeys((None, *(choice for layer in layers for choice in layer.choices))):
        weighed.setdefault(tuple(layer.taking(choice) for layer in layers), choice)
    courses = tuple(_course(layers, choice, times) for choice in weighed.values())
    chosen = courses[0]
    for course in courses[1:]:
        if course.usual_ms <= WORTH_CHANGING * chosen.least_ms:
            chosen = course
    return Decision(tuple(layers), courses, chosen, times)


def _course(layers: Sequence[Candidates], choice: Choice | None, times: LayerTimes) -> Course:
    taken = [(layer, layer.taking(choice)) for layer in layers]
    defaults = " and ".join(dict.fromkeys(each.label for _, each in taken))
    return Course(
        choice,
        defaults if choice is None else choice.label,
        sum(_ms(layer, each, times) for layer, each in taken),
        sum(_ms(layer, each, times.usual) for layer, each in taken),
    )


def _ms(layer: Candidates, choice: Choice, times: LayerTimes) -> float:
    return times.ms(layer.num_inputs, layer.num_outputs, choice, layer.rows)


def _form_time(form: str, least_ms: float, usual_ms: float) -> FormTime:
    return FormTime(form=form, least_ms=round(least_ms, 5), usual_ms=round(usual_ms, 5))
