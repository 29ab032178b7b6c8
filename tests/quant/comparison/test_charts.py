from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest

from bundle.form import Form
from bundle.report import LayerSensitivity
from pages.drawing import TEXT_PX, Line, Part, Shape, Text
from pages.label_places import Box
from pages.palette import SERIES
from quant.comparison.charts import charts_of, form_label, short_layer
from quant.comparison.scatter import Chart
from quant.comparison.variants import Siblings, read_siblings
from runtime.turns import Quartiles


def row(layer: str, loss: float, form: Form) -> LayerSensitivity:
    return LayerSensitivity(
        component="decoder",
        layer=f"model.text_model.layers.{layer}.weight",
        form=form,
        measure="kl",
        loss=loss,
        num_samples=9,
        weight_bytes=10,
        fp32_bytes=80,
    )


SENSITIVITY = (
    *(row(f"{at}.mlp.up_proj", at / 100, Form(2, 128, "ternary")) for at in range(30)),
    *(row(f"{at}.mlp.up_proj", at / 10_000, Form(4, 64)) for at in range(30)),
)


@pytest.fixture(scope="module")
def siblings(variant_at) -> Siblings:
    folders = [
        variant_at("ternary", num_bytes=50_000, lost=150, passed=False, sensitivity=SENSITIVITY),
        variant_at("int4", num_bytes=100_000, lost=3),
        variant_at("int8", num_bytes=200_000),
        variant_at("nf4", num_bytes=101_000, passed=None),
    ]
    (found,) = read_siblings(folders)
    return found


@pytest.fixture(scope="module")
def charts(siblings: Siblings) -> dict[str, Chart]:
    return named(siblings)


def named(siblings: Siblings) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts_of(siblings)}


def test_every_measurement_has_its_chart(siblings: Siblings, charts: dict[str, Chart]) -> None:
    assert list(charts) == ["loss-by-size", "accuracy-by-size", "loss-by-task", "sensitivity-decoder"]
    speeds = {label: Quartiles(rate - 1, rate, rate + 2) for label, rate in (("int4", 40.0), ("fp32", 20.0))}
    timed = named(replace(siblings, speeds=speeds))
    assert {"loss-by-speed", "accuracy-by-speed"} <= set(timed)


def test_nothing_measured_is_no_chart(variant_at) -> None:
    (siblings,) = read_siblings([variant_at("int4", num_bytes=100_000, passed=None)])
    assert charts_of(siblings) == []


def scale(ticks: list[Text], axis: int, baseline_px: float = 0.0) -> Callable[[float], float]:
    """The values that pixels stand for, by the ticks as they are written."""
    values = [float(tick.text.replace(",", "")) for tick in ticks]
    slope, offset = np.polyfit([tick.at[axis] - baseline_px for tick in ticks], values, 1)
    return lambda px: slope * px + offset


@dataclass(frozen=True)
class Read:
    """A drawing, read back by its axes."""

    parts: Sequence[Part]

    @property
    def texts(self) -> list[Text]:
        return [part for part in self.parts if isinstance(part, Text)]

    @property
    def names(self) -> list[Text]:
        return [text for text in self.texts if text.has_halo]

    @property
    def shapes(self) -> list[Shape]:
        return [part for part in self.parts if isinstance(part, Shape)]

    @property
    def x(self) -> Callable[[float], float]:
        middle = [text for text in self.texts if text.anchor == "middle" and not text.has_halo]
        return scale([tick for tick in middle if tick.at[1] == middle[0].at[1]], 0)

    @property
    def y(self) -> Callable[[float], float]:
        is_of_rows = not self.row_names[0].text.isdecimal()
        # A third of a letter's height lies between a tick and the baseline of its text.
        return (lambda px: px) if is_of_rows else scale(self.row_names, 1, baseline_px=TEXT_PX / 3)

    @property
    def row_names(self) -> list[Text]:
        return [text for text in self.texts if text.anchor == "end" and not text.has_halo]

    def centre(self, shape: Shape) -> tuple[float, float]:
        x, y = np.mean(shape.points, axis=0)
        return self.x(x), self.y(y)

    def lines(self, colour: str) -> list[list[tuple[float, float]]]:
        found = [part for part in self.parts if isinstance(part, Line) and part.colour == colour]
        return [[(self.x(x), self.y(y)) for x, y in line.points] for line in found]


def read(chart: Chart) -> Read:
    return Read(chart.drawing.parts)


def test_points_stand_where_the_figures_say(siblings: Siblings, charts: dict[str, Chart]) -> None:
    found = read(charts["accuracy-by-size"])
    measured = [variant for variant in siblings.variants if variant.accuracy]
    expected = [
        *((variant.manifest.weight_bytes / 1e6, 100 * variant.accuracy.quantized) for variant in measured),
        (siblings.fp32_bytes / 1e6, 99.5),
    ]
    np.testing.assert_allclose([found.centre(mark) for mark in found.shapes], expected, rtol=1e-3)


def test_only_what_passes_is_filled(charts: dict[str, Chart]) -> None:
    found = read(charts["accuracy-by-size"])
    (hollow,) = [mark for mark in found.shapes if mark.fill == "ground"]
    assert found.centre(hollow)[1] == pytest.approx(24.5)  # ternary, 151 of 200 lost
    assert hollow.edge == "series-0"


def test_whiskers_reach_from_the_worst_to_the_best_loss(siblings: Siblings, charts: dict[str, Chart]) -> None:
    at = next(at for at, variant in enumerate(siblings.variants) if variant.label == "int4")
    int4 = siblings.variants[at].accuracy
    assert int4 is not None
    _, upright = read(charts["accuracy-by-size"]).lines(SERIES[at])
    expected = [100 * int4.fp32 - int4.loss_high, 100 * int4.fp32 - int4.loss_low]
    assert sorted(y for _, y in upright) == pytest.approx(sorted(expected), abs=0.01)


def test_the_line_joins_what_is_neither_larger_nor_more_often_wrong(
    siblings: Siblings, charts: dict[str, Chart]
) -> None:
    front = read(charts["accuracy-by-size"]).lines("soft")[-1]
    expected = [(each.manifest.weight_bytes / 1e6, 100 * each.accuracy.quantized) for each in siblings.pareto]
    assert len(expected) == 3
    np.testing.assert_allclose(front, expected, rtol=1e-3)


def test_names_of_points_do_not_overlap(variant_at) -> None:
    folders = [variant_at(f"int4-{at}", num_bytes=100_000 + 800 * at, lost=at % 3) for at in range(6)]
    (siblings,) = read_siblings(folders)
    boxes = [Box.of_text(name) for name in read(named(siblings)["accuracy-by-size"]).names]
    assert len(boxes) == 7
    assert not any(one.overlap(other) for one, other in combinations(boxes, 2))


def test_a_long_name_keeps_both_ends(variant_at) -> None:
    name = "int4-of-a-run-that-was-given-a-very-long-name-indeed-a"
    (siblings,) = read_siblings([variant_at(name, num_bytes=100_000)])
    assert "int4-of-a-run...name-indeed-a" in {text.text for text in read(named(siblings)["accuracy-by-size"]).texts}


def test_bars_are_as_long_as_what_was_lost_and_whiskers_hold_its_interval(
    siblings: Siblings, charts: dict[str, Chart]
) -> None:
    found = read(charts["loss-by-task"])
    assert [name.text for name in found.row_names] == ["digit (n 200)", "colour & shape (n 200)", "all (n 200)"]
    for at, variant in enumerate(siblings.variants):
        if variant.report and variant.report.tasks:
            losses = [variant.report.tasks[task] for task in siblings.tasks]
            whiskers = [[x for x, _ in line] for line in found.lines(SERIES[at])]
            bars = [shape for shape in found.shapes if shape.fill == SERIES[at] and shape.edge is None]
            ends = [[found.x(x) for x, _ in bar.points[:2]] for bar in bars]
            np.testing.assert_allclose(ends, [[0, loss.loss_points] for loss in losses], atol=0.05)
            np.testing.assert_allclose(whiskers, [[loss.loss_low, loss.loss_high] for loss in losses], atol=0.05)


def test_layers_are_shown_the_worst_first_and_the_rest_is_counted(charts: dict[str, Chart]) -> None:
    chart = charts["sensitivity-decoder"]
    found = read(chart)
    assert [name.text for name in found.row_names[:2]] == ["29 mlp.up_proj", "28 mlp.up_proj"]
    bars = [shape for shape in found.shapes if shape.fill == "series-0" and shape.edge is None]
    assert [found.x(bar.points[1][0]) for bar in bars[:2]] == pytest.approx([0.29, 0.28])  # bars are the costlier form
    points = [shape for shape in found.shapes if shape.edge == "series-1"]
    assert found.x(np.mean(points[0].points, axis=0)[0]) == pytest.approx(0.0029, abs=1e-4)
    legend = [text.text for text in found.texts if text.colour == "ink"]
    assert legend == ["2-bit b128 ternary", "4-bit b64"]
    assert "other 6 layers" in chart.caption


def test_names_of_layers_and_forms_are_short() -> None:
    assert short_layer("model.text_model.layers.3.self_attn.q_proj.weight") == "3 attn.q_proj"
    assert short_layer("lm_head.weight") == "lm_head"
    assert form_label(Form(4, 64, "gptq")) == "4-bit b64 gptq"
    assert form_label(Form(8)) == "8-bit"
