"""KL against bytes and speed, ours and others' in one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from pages.drawing import Line, Shape, Text
from pages.label_places import Box
from quant.comparison.loss_charts import loss_charts
from quant.comparison.rivals import Rivals
from quant.comparison.scatter import Chart
from quant.comparison.variants import Siblings, read_siblings
from runtime.turns import Quartiles

FILES = (("Q8_0", 180_000, 0.003, 1.5), ("Q5_1", 190_000, 0.02, 1.4), ("Q4_0", 90_000, 0.2, 2.0))
OURS, THEIRS = "series-0", "ink"


@pytest.fixture(scope="module")
def siblings(variant_at) -> Siblings:
    folders = [
        variant_at("int8", num_bytes=200_000, kl_mean=0.004, weights="int8"),
        variant_at("int4", num_bytes=100_000, kl_mean=0.04),
        variant_at("nf4", num_bytes=104_000, kl_mean=0.3, passed=False),
        variant_at("fp4", num_bytes=90_000, passed=None),
    ]
    (found,) = read_siblings(folders)
    return found


@pytest.fixture(scope="module")
def beside(siblings: Siblings, rivals_of: Callable[..., Rivals]) -> Siblings:
    return replace(siblings, rivals=(rivals_of(siblings.parent_sha256, *FILES),))


def timed(siblings: Siblings, ratios: dict[str, float]) -> Siblings:
    return replace(
        siblings,
        speeds={label: Quartiles(40 * x, 50 * x, 60 * x) for label, x in ratios.items()},
        speed_ratios={label: Quartiles(0.8 * x, x, 1.2 * x) for label, x in ratios.items()},
    )


class Read:
    """A chart read back by its ticks: x straight, y logarithmic."""

    def __init__(self, chart: Chart) -> None:
        parts = chart.drawing.parts
        self.names = [part for part in parts if isinstance(part, Text) and part.has_halo]
        self.dashed = [part for part in parts if isinstance(part, Line) and part.is_dashed]
        self._solid = [part for part in parts if isinstance(part, Line) and not part.is_dashed]
        ticks = [part for part in parts if isinstance(part, Text) and not part.has_halo]
        middle = [tick for tick in ticks if tick.anchor == "middle"]
        across = [tick for tick in middle if tick.at[1] == middle[0].at[1]]
        upright = [tick for tick in ticks if tick.anchor == "end"]
        self._x = np.polyfit([tick.at[0] for tick in across], [float(tick.text) for tick in across], 1)
        values = np.log10([float(tick.text) for tick in upright])
        self._y = np.polyfit([tick.at[1] - 4 for tick in upright], values, 1)  # a third of 12 px lies below a tick
        lowest = min(tick.at[1] for tick in across) - 15
        legend = max([tick.at[1] for tick in ticks if tick.colour == "ink"], default=0.0)
        shapes = [part for part in parts if isinstance(part, Shape)]
        self.marks = [shape for shape in shapes if legend < np.mean(shape.points, axis=0)[1] <= lowest]

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        return float(np.polyval(self._x, point[0])), float(10 ** np.polyval(self._y, point[1]))

    def front(self, colour: str) -> list[float]:
        """The losses along the one line of a colour that is no whisker: neither level nor upright."""
        aslant = (each for each in self._solid if each.points[0][0] != each.points[-1][0])
        (line,) = [each for each in aslant if each.colour == colour and each.points[0][1] != each.points[-1][1]]
        return [self.at(point)[1] for point in line.points]

    def places(self, colour: str) -> list[tuple[float, float]]:
        return [self.at(tuple(np.mean(mark.points, axis=0))) for mark in self.marks if mark.edge == colour]


def charts(siblings: Siblings) -> dict[str, Read]:
    return {chart.name: Read(chart) for chart in loss_charts(siblings)}


def test_points_of_both_systems_stand_at_their_bytes_and_loss(beside: Siblings) -> None:
    found = charts(beside)["loss-by-size"]
    measured = [each for each in beside.variants if each.report and each.report.teacher_forced]
    ours = [(each.manifest.language_model_bytes / 1e6, each.report.teacher_forced.kl_mean) for each in measured]
    assert len(ours) == 3
    np.testing.assert_allclose(found.places(OURS), ours, rtol=0.02)
    np.testing.assert_allclose(found.places(THEIRS), [(size / 1e6, kl) for _, size, kl, _ in FILES], rtol=0.02)


def test_bytes_leave_out_the_vision_tower(siblings: Siblings) -> None:
    for variant in siblings.variants:
        parts = variant.manifest.components
        expected = parts["embed_tokens"].weight_bytes + parts["decoder"].weight_bytes
        assert variant.manifest.language_model_bytes == expected < variant.manifest.weight_bytes


def test_only_what_passes_its_gates_is_filled(beside: Siblings) -> None:
    found = charts(beside)["loss-by-size"]
    (hollow,) = [mark for mark in found.marks if mark.fill == "ground"]
    assert found.at(tuple(np.mean(hollow.points, axis=0)))[1] == pytest.approx(0.3, rel=0.02)


def test_each_systems_front_leaves_out_what_is_larger_and_no_nearer(beside: Siblings) -> None:
    found = charts(beside)["loss-by-size"]
    assert found.front(OURS) == pytest.approx([0.04, 0.004], rel=0.02)
    assert found.front(THEIRS) == pytest.approx([0.2, 0.003], rel=0.02)


def test_a_file_whose_weights_were_not_rounded_is_hollow_and_no_part_of_the_front(beside: Siblings) -> None:
    (system,) = beside.rivals
    kept, *others = system.rivals
    assert kept.name == "Q8_0"
    marked = system.model_copy(update={"rivals": (kept.model_copy(update={"weight_error": 1e-5}), *others)})
    changed = replace(beside, rivals=(marked,))
    found = charts(changed)["loss-by-size"]
    hollow = [mark for mark in found.marks if mark.fill == "ground" and mark.edge == THEIRS]
    assert [found.at(tuple(np.mean(mark.points, axis=0)))[1] for mark in hollow] == pytest.approx([0.003], rel=0.02)
    assert found.front(THEIRS) == pytest.approx([0.2, 0.02], rel=0.02)
    assert "Hollow Q8_0: the parent's weights lie on that grid" in loss_charts(changed)[0].caption


def test_whiskers_upright_are_the_interval_of_the_loss(siblings: Siblings) -> None:
    found = charts(siblings)["loss-by-size"]
    upright = [each for each in found._solid if each.points[0][0] == each.points[-1][0] and each.colour == "series-1"]
    ends = sorted(found.at(point)[1] for line in upright for point in line.points)
    label = siblings.variants[1].label
    assert label == "int4"
    assert [ends[0], ends[-1]] == pytest.approx([0.8 * 0.04, 1.2 * 0.04], rel=0.02)


def test_a_dashed_line_stands_at_each_limit_and_the_caption_says_whose_it_is(beside: Siblings) -> None:
    found = charts(beside)["loss-by-size"]
    assert [found.at(line.points[0])[1] for line in found.dashed] == pytest.approx([0.02, 0.05], rel=0.02)
    assert {"limit 0.02", "limit 0.05"} <= {name.text for name in found.names}
    (chart,) = [chart for chart in loss_charts(beside) if chart.name == "loss-by-size"]
    assert "0.02 for int8; 0.05 for int4, nf4" in chart.caption


def test_speeds_of_both_systems_are_told_by_the_parents(beside: Siblings) -> None:
    found = charts(timed(beside, {"fp32": 1.0, "int8": 1.7, "int4": 2.2, "nf4": 0.6}))["loss-by-speed"]
    assert [x for x, _ in found.places(OURS)] == pytest.approx([2.2, 0.6, 1.7], rel=0.02)  # the smallest first
    assert [x for x, _ in found.places(THEIRS)] == pytest.approx([ratio for *_, ratio in FILES], rel=0.02)


def test_without_the_parents_speed_nothing_is_told_of_others(beside: Siblings) -> None:
    alone = replace(timed(beside, {"int8": 1.7, "int4": 2.2}), speed_ratios={})
    found = charts(alone)["loss-by-speed"]
    assert [x for x, _ in found.places(OURS)] == pytest.approx([110, 85], rel=0.02)
    assert found.places(THEIRS) == []


def test_no_loss_at_all_stands_at_the_lower_edge(variant_at) -> None:
    (siblings,) = read_siblings([variant_at("int8", num_bytes=200_000, kl_mean=0.0)])
    (chart,) = loss_charts(siblings)
    (mark,) = [part for part in chart.drawing.parts if isinstance(part, Shape)]
    assert Read(chart).at(tuple(np.mean(mark.points, axis=0)))[1] == pytest.approx(1e-5, rel=0.02)


def test_names_of_twelve_points_cover_neither_each_other_nor_the_limits(variant_at, rivals_of) -> None:
    folders = [
        variant_at(f"int4-{kind}", num_bytes=90_000 + 2_000 * at, kl_mean=0.04 * 1.2**at)
        for at, kind in enumerate(["rtn", "gptq", "awq", "hqq", "b64", "b128"])
    ]
    (siblings,) = read_siblings(folders)
    files = [(f"Q4_{at}", 80_000 + 3_000 * at, 0.05 * 1.1**at, 2.0) for at in range(6)]
    found = charts(replace(siblings, rivals=(rivals_of(siblings.parent_sha256, *files),)))["loss-by-size"]
    boxes = [Box.of_text(name) for name in found.names]
    assert len(boxes) == 13
    assert not any(one.overlap(other) for one, other in combinations(boxes, 2))


def test_an_encoder_has_no_such_chart(siblings: Siblings) -> None:
    unmeasured = [each for each in siblings.variants if each.label == "fp4"]
    assert loss_charts(replace(siblings, variants=tuple(unmeasured))) == []
