from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from bundle.form import Form
from bundle.report import LayerSensitivity
from quant.comparison.charts import COLOURS, Chart, charts_of, form_label, short_layer
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


@pytest.fixture(scope="module")
def svgs(charts: dict[str, Chart]) -> list[str]:
    return [chart.svg() for chart in charts.values()]


def named(siblings: Siblings) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts_of(siblings)}


def test_every_measurement_has_its_chart(siblings: Siblings, charts: dict[str, Chart]) -> None:
    assert list(charts) == ["accuracy-by-size", "loss-by-task", "sensitivity-decoder"]
    speeds = {label: Quartiles(rate - 1, rate, rate + 2) for label, rate in (("int4", 40.0), ("fp32", 20.0))}
    assert "accuracy-by-speed" in named(replace(siblings, speeds=speeds))


def test_nothing_measured_is_no_chart(variant_at) -> None:
    (siblings,) = read_siblings([variant_at("int4", num_bytes=100_000, passed=None)])
    assert charts_of(siblings) == []


def test_points_stand_where_the_figures_say(siblings: Siblings, charts: dict[str, Chart]) -> None:
    axes = charts["accuracy-by-size"].figure.axes[0]
    marks = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if line.get_marker() not in ("None", "")
    }
    expected = {
        (variant.manifest.weight_bytes / 1e6, 100 * variant.accuracy.quantized)
        for variant in siblings.variants
        if variant.accuracy
    }
    assert {(round(x, 6), round(y, 6)) for x, y in expected} <= {(round(x, 6), round(y, 6)) for x, y in marks}
    assert (siblings.fp32_bytes / 1e6, 99.5) in marks  # the parent's own point


def test_only_what_passes_is_filled(charts: dict[str, Chart]) -> None:
    axes = charts["accuracy-by-size"].figure.axes[0]
    hollow = [line.get_ydata()[0] for line in axes.lines if str(line.get_markerfacecolor()) == "#fefefe"]
    assert hollow == [pytest.approx(24.5)]  # ternary, 151 of 200 lost


def test_whiskers_reach_from_the_worst_to_the_best_loss(siblings: Siblings, charts: dict[str, Chart]) -> None:
    axes = charts["accuracy-by-size"].figure.axes[0]
    int4 = next(variant for variant in siblings.variants if variant.label == "int4").accuracy
    assert int4 is not None
    ends = [sorted(path.vertices[:, 1]) for each in axes.collections for path in each.get_paths()]
    expected = sorted([100 * int4.fp32 - int4.loss_high, 100 * int4.fp32 - int4.loss_low])
    assert any(found == pytest.approx(expected) for found in ends)


def test_names_of_points_do_not_overlap(variant_at) -> None:
    folders = [variant_at(f"int4-{at}", num_bytes=100_000 + 800 * at, lost=at % 3) for at in range(6)]
    (siblings,) = read_siblings(folders)
    figure = named(siblings)["accuracy-by-size"].figure
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 7
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_layers_are_shown_the_worst_first_and_the_rest_is_counted(charts: dict[str, Chart]) -> None:
    chart = charts["sensitivity-decoder"]
    axes = chart.figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:2] == ["29 mlp.up_proj", "28 mlp.up_proj"]
    assert [bar.get_width() for bar in axes.patches[:2]] == [0.29, 0.28]  # bars are the costlier form
    assert [text.get_text() for text in chart.figure.legends[0].texts] == ["2-bit b128 ternary", "4-bit b64"]
    assert "other 6 layers" in chart.caption


def test_names_of_layers_and_forms_are_short() -> None:
    assert short_layer("model.text_model.layers.3.self_attn.q_proj.weight") == "3 attn.q_proj"
    assert short_layer("lm_head.weight") == "lm_head"
    assert form_label(Form(4, 64, "gptq")) == "4-bit b64 gptq"
    assert form_label(Form(8)) == "8-bit"


def test_an_svg_has_the_pages_colours_and_no_address(svgs: list[str]) -> None:
    for svg in svgs:
        assert "http" not in svg
        assert not re.search("|".join(COLOURS), svg)
        assert "var(--series-0)" in svg
        assert "DejaVu" not in svg
        ElementTree.fromstring(svg)  # it is well formed


def test_every_colour_that_is_drawn_has_a_variable(svgs: list[str]) -> None:
    left = {found for svg in svgs for found in re.findall(r"#[0-9a-f]{6}\b", svg)}
    assert left <= {"#000000"}  # clip paths


def test_a_png_is_drawn_on_white(charts: dict[str, Chart], tmp_path: Path) -> None:
    charts["loss-by-task"].write_png(tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert image.width > 1000
