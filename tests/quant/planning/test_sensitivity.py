from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bundle.directory import Bundle, open_bundle, seal
from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.golden import canary_image
from graphs.layers import find_linears
from graphs.store import open_graph, save_graph
from quant.calibration.feeds import FeedSource
from quant.calibration.statistics import InputStatistics
from quant.planning import sensitivity
from quant.planning.plan import Choice, bytes_of
from quant.planning.sensitivity import MIN_SAMPLES, Probe, measure_sensitivity, stored
from quant.quality.evaluation import Evaluation, turns_of
from quant.weights.matmul_nbits import MatMulNBits
from quant.weights.w8a8 import PerTokenInt8
from quant.weights.weight_pass import WeightPass
from runtime.one_embedding import DualEncoderRunner
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings

TERNARY, INT4, INT8 = Form(2, 32, "ternary"), Form(4, 32), Form(8)


def softmax(rows: np.ndarray) -> np.ndarray:
    exponents = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


@pytest.fixture
def source(model_of: Callable[..., ir.Model], rng: np.random.Generator, array_source: Callable[..., Any]) -> Any:
    """logits = (x @ w.in) @ w.out^T over 7 tokens, the second matrix stored turned, on 16 samples."""
    weights = {"w.in": rng.standard_normal((32, 32)), "w.out": rng.standard_normal((7, 32))}
    nodes = [
        ("MatMul", ["x", "w.in"], "h", {}),
        ("Transpose", ["w.out"], "turned", {"perm": [1, 0]}),
        ("MatMul", ["h", "turned"], "logits", {}),
        ("Relu", ["h"], "present", {}),
    ]
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    model = model_of({"x": (ir.DataType.FLOAT, ["B", "T", 32])}, nodes, arrays, ["logits", "present"])
    samples = [0.1 * rng.standard_normal((1, 1 + at % 3, 32)).astype(np.float32) for at in range(16)]
    return array_source(model, samples)


@pytest.mark.parametrize("layer", ["w.in", "w.out"])
def test_a_loss_is_the_mean_divergence_of_the_answers(source: Any, layer: str) -> None:
    probe = Probe(source, "decoder")
    rows = {name: linear.rows().astype(np.float64) for name, linear in probe.linears.items()}
    changed = {**rows, layer: 1.5 * rows[layer]}
    x = np.concatenate([feeds["x"].reshape(-1, 32) for feeds in source.of("decoder")])
    p, q = (softmax(x @ each["w.in"].T @ each["w.out"].T) for each in (rows, changed))
    expected = np.mean(np.sum(p * np.log(p / q), axis=-1))
    assert expected > 0.01
    # float32 logits of about 1 are off by 1e-7, divergences of 0.1 by 1e-6
    assert probe.loss({layer: changed[layer].astype(np.float32)}) == pytest.approx(expected, rel=1e-4)


def test_own_weights_lose_nothing(source: Any) -> None:
    probe = Probe(source, "decoder")
    assert probe.loss({name: linear.rows() for name, linear in probe.linears.items()}) == 0


def test_answers_that_are_not_finite_are_no_small_loss(source: Any) -> None:
    probe = Probe(source, "decoder")
    with pytest.raises(QuantizationError, match=r"with w\.in rounded, answers are not finite"):
        probe.loss({"w.in": np.full((32, 32), np.nan, np.float32)})


def test_the_table_holds_every_layer_in_every_form(source: Any) -> None:
    forms = {"w.in": [TERNARY, INT4], "w.out": [INT8]}
    table = measure_sensitivity(source, "decoder", forms)
    assert [(row.layer, row.form) for row in table] == [("w.in", TERNARY), ("w.in", INT4), ("w.out", INT8)]
    assert all((row.component, row.measure, row.num_samples) == ("decoder", "kl", 16) for row in table)
    assert [row.fp32_bytes for row in table] == [4096, 4096, 896]
    assert table[0].loss > 10 * table[1].loss > 0  # ternary leaves a fifth of the energy, int4 a hundredth
    assert measure_sensitivity(source, "decoder", forms) == table


def test_calibrated_roundings_get_the_statistics_of_their_layer(source: Any) -> None:
    x = np.concatenate([feeds["x"].reshape(-1, 32) for feeds in source.of("decoder")])
    inputs = {"w.in": InputStatistics(len(x), np.abs(x).max(axis=0), x.T @ x / len(x))}
    gptq = Form(4, 32, "gptq")
    (row,) = measure_sensitivity(source, "decoder", {"w.in": [gptq]}, inputs=inputs)
    assert row.loss > 0
    with pytest.raises(QuantizationError, match=r"w\.in: .*needs"):
        measure_sensitivity(source, "decoder", {"w.in": [gptq]})


class Clock:
    """A clock by which every pass over the samples takes 4 seconds."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        self._now_s += 4.0
        return self._now_s


def test_a_time_limit_costs_samples(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "time", Clock())
    lines: list[str] = []
    forms = {"w.in": [TERNARY, INT4], "w.out": [INT8]}
    table = measure_sensitivity(source, "decoder", forms, max_seconds=9, progress=lines.append)
    assert [row.num_samples for row in table] == [12, 12, 12]
    assert lines[0] == "decoder: 3 trials on 12 samples, about 9 s"
    assert lines[1:] == ["decoder: 1 of 3 trials done", "decoder: 2 of 3 trials done"]


def test_a_time_limit_too_short_for_a_verdict_is_refused(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "time", Clock())
    with pytest.raises(QuantizationError, match=f"1 trials of {MIN_SAMPLES} samples take about 2 s, more than the 1.9"):
        measure_sensitivity(source, "decoder", {"w.in": [INT4]}, max_seconds=1.9)


def test_an_unknown_layer_is_named(source: Any) -> None:
    with pytest.raises(QuantizationError, match="no linear layer named nowhere"):
        measure_sensitivity(source, "decoder", {"nowhere": [INT4]})


def test_a_graph_without_layers_is_refused(model_of: Callable[..., ir.Model], array_source: Callable[..., Any]) -> None:
    model = model_of({"x": (ir.DataType.FLOAT, ["B", "T", 32])}, [("Relu", ["x"], "y", {})], {}, ["y"])
    with pytest.raises(QuantizationError, match="nothing to measure"):
        Probe(array_source(model, []), "decoder")


PASSES: list[tuple[type[WeightPass], Form]] = [
    (PerTokenInt8, INT8),
    (MatMulNBits, INT4),
    (MatMulNBits, TERNARY),
    (MatMulNBits, Form(2, 32, "ternary-mean")),
    (MatMulNBits, Form(2, 32, "ternary-planes")),
    (MatMulNBits, Form(4, 32, "hqq")),
]


@pytest.mark.parametrize(("scheme", "form"), PASSES)
def test_bytes_are_those_that_the_pass_stores(
    scheme: type[WeightPass], form: Form, model_of: Callable[..., ir.Model], rng: np.random.Generator
) -> None:
    rows = rng.standard_normal((24, 160)).astype(np.float32)
    model = model_of(
        {"x": (ir.DataType.FLOAT, ["T", 160])},
        [("MatMul", ["x", "w"], "y", {})],
        {"w": np.ascontiguousarray(rows.T)},
        ["y"],
    )
    (linear,) = find_linears(model.graph)
    expected = stored(linear, form, {})[1]
    scheme({"w": form})(model)
    # Steps and sums that layers share are the graph's.
    of_layer = [value.const_value.nbytes for name, value in model.graph.initializers.items() if name.startswith("w.")]
    assert expected == sum(of_layer)


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Bundle, str, str, Form], Bundle]:
    """A copy of a bundle with one layer of one graph in the float32 numbers of a form."""

    def edit(bundle: Bundle, component: str, layer: str, form: Form) -> Bundle:
        copy = Path(shutil.copytree(bundle.directory, tmp_path / "copy"))
        model = open_graph(bundle.graph_path(component))
        linear = next(each for each in find_linears(model.graph) if each.name == layer)
        rows, _ = stored(linear, form, {})
        array = np.ascontiguousarray(rows if linear.is_transposed else rows.T)
        linear.weight.const_value = ir.tensor(array, name=layer)
        save_graph(model, copy / bundle.graph_path(component).name)
        return seal(copy, bundle.manifest)

    return edit


def test_a_decoders_loss_is_that_of_the_edited_bundle(
    smolvlm_bundle: Path, edited: Callable[[Bundle, str, str, Form], Bundle], asked: type, one_thread: RuntimeSettings
) -> None:
    questions = [asked("yes", (canary_image(),)), asked("seven")]
    bundle = open_bundle(smolvlm_bundle)
    source = FeedSource(bundle, Evaluation(questions=questions), settings=one_thread)
    layer = "model.text_model.layers.1.mlp.up_proj.weight"
    (row,) = measure_sensitivity(source, "decoder", {layer: [INT4]})
    runners = [VisionLanguageRunner(each, one_thread) for each in (bundle, edited(bundle, "decoder", layer, INT4))]
    divergences = []
    for question in questions:
        p, q = (softmax(_logits(runner, question)) for runner in runners)
        divergences.append(np.sum(p * np.log(p / q), axis=-1))
    expected = float(np.concatenate(divergences).mean())
    assert expected > 1e-4
    # float32 logits near 10 are off by 1e-5, by way of other kernels
    assert row.loss == pytest.approx(expected, rel=1e-2)


def _logits(runner: VisionLanguageRunner, question: Any) -> np.ndarray:
    prompt = runner.prompt(turns_of(question), question.images)
    return runner.answer_logits(prompt, runner.answer_ids(question.answer)).astype(np.float64)


@pytest.mark.parametrize("component", ["text_encoder", "vision_encoder"])
def test_an_encoders_loss_is_the_distance_of_its_embeddings(
    clip_bundle: Path,
    edited: Callable[[Bundle, str, str, Form], Bundle],
    captioned: type,
    one_thread: RuntimeSettings,
    component: str,
) -> None:
    captions = [captioned(canary_image(), text) for text in ("a", "a red circle")]
    bundle = open_bundle(clip_bundle)
    source = FeedSource(bundle, Evaluation(captions=captions), settings=one_thread)
    layer = next(iter(Probe(source, component).linears))
    (row,) = measure_sensitivity(source, component, {layer: [TERNARY]})
    bundles = bundle, edited(bundle, component, layer, TERNARY)
    parent, variant = (DualEncoderRunner(each, one_thread) for each in bundles)
    if component == "text_encoder":
        pairs = [runner.embed_texts([each.caption for each in captions]) for runner in (parent, variant)]
    else:
        pairs = [runner.embed_images([each.image for each in captions]) for runner in (parent, variant)]
    expected = float(np.mean(1 - np.sum(pairs[0].astype(np.float64) * pairs[1], axis=-1)))
    assert row.measure == "cosine_distance"
    assert expected > 1e-3
    assert row.loss == pytest.approx(expected, rel=1e-3)  # unit vectors in float32, other batches


@pytest.mark.parametrize("form", [Form(4, 32, "gptq-coded", doubled_inputs=32), Form(4, 32, "gptq-zeros", 8)])
def test_a_search_counts_the_bytes_that_a_plan_counts(rng: np.random.Generator, model_of, form: Form) -> None:
    weight = rng.standard_normal((64, 16)).astype(np.float32)
    model = model_of({"x": (ir.DataType.FLOAT, ["B", 64])}, [("MatMul", ["x", "w"], "y", {})], {"w": weight}, ["y"])
    (linear,) = find_linears(model.graph)
    x = rng.standard_normal((80, 64)).astype(np.float32)
    inputs = {"w": InputStatistics(len(x), np.abs(x).max(axis=0), x.T @ x / np.float32(len(x)))}
    assert stored(linear, form, inputs)[1] == bytes_of(Choice("matmul_nbits", form), 64, 16)
