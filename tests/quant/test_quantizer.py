from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from bundle import report as reports
from bundle.directory import Bundle, open_bundle, read_manifest, seal
from bundle.errors import BundleError, BundleFileError, QuantizationError
from bundle.golden import GOLDEN, Recording, canary_image, load_golden, save_golden
from bundle.report import Report
from graphs.layers import find_linears
from graphs.store import open_graph
from quant.planning.draft import Options, make_draft
from quant.quality.evaluation import Evaluation, Labelled
from quant.quantizer import limits_row, quantize_bundle

ROOT = Path(__file__).resolve().parents[2]

COLOURS = ("red", "green", "blue", "white", "black", "gray")


@dataclass(frozen=True)
class Asked:
    answer: str
    task: str = "colour"
    images: tuple[Image.Image, ...] = field(default_factory=lambda: (canary_image(),))

    def messages(self) -> list[dict[str, object]]:
        parts = [*({"type": "image"} for _ in self.images), {"type": "text", "text": "What is this?"}]
        return [{"role": "user", "content": parts}]

    def is_right(self, reply: str) -> bool:
        return reply == self.answer


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str


FEW = {"accuracy_loss_points/high": 100.0}
"""A limit that a handful of samples can keep."""
QUESTIONS = Evaluation(questions=(Asked("red"), Asked("a cat", task="name"), Asked("42", task="count", images=())))
CAPTIONS = [Captioned(Image.new("RGB", (40, 30), colour), f"a {colour} square") for colour in COLOURS]
LABELS = {"colour": Labelled([sample.caption for sample in CAPTIONS], CAPTIONS)}


def read_report(folder: Path) -> Report:
    return reports.read_report(Bundle(folder, read_manifest(folder)))


@pytest.fixture(scope="module")
def int8_vlm(smolvlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quantized") / "int8"
    quantize_bundle(smolvlm_bundle, output, weights="int8", evaluation=QUESTIONS, limits=FEW)
    return output


@pytest.fixture(scope="module")
def int8_clip(clip_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quantized") / "int8"
    samples = Evaluation(captions=CAPTIONS, labelled=LABELS)
    quantize_bundle(clip_bundle, output, weights="int8", evaluation=samples, limits=FEW)
    return output


def test_a_variant_opens_as_a_bundle_and_names_its_schemes(smolvlm_bundle: Path, int8_vlm: Path) -> None:
    parent, variant = read_manifest(smolvlm_bundle), open_bundle(int8_vlm, allow_ungated=True).manifest
    assert variant.name == f"{parent.name}-int8"
    assert {name: part.scheme for name, part in variant.components.items()} == {
        "vision_encoder": "int8",
        "embed_tokens": "int8-weight-only",
        "decoder": "int8",
    }
    for name, part in variant.components.items():
        before = parent.components[name]
        assert (part.role, part.phase) == (before.role, "any")
        assert (part.inputs, part.outputs) == (before.inputs, before.outputs)
    assert variant.states == parent.states != ()
    assert variant.source_sha256 == parent.source_sha256


def test_weight_bytes_are_those_of_the_initializers(int8_vlm: Path) -> None:
    manifest = read_manifest(int8_vlm)
    for component in manifest.components.values():
        initializers = ir.load(int8_vlm / component.file).graph.initializers.values()
        assert component.weight_bytes == sum(value.const_value.nbytes for value in initializers)


def test_a_variant_keeps_what_is_not_weights(smolvlm_bundle: Path, int8_vlm: Path) -> None:
    parent, variant = read_manifest(smolvlm_bundle), read_manifest(int8_vlm)
    kept = {name for name in parent.files if ".onnx" not in name}
    assert kept
    assert all(variant.files[name] == parent.files[name] for name in kept)
    assert variant.files.keys() == parent.files.keys() | {"report.json"}


def test_int4_is_smaller_than_int8_and_both_than_the_parent(smolvlm_bundle: Path, int8_vlm: Path, tmp_path) -> None:
    small = quantize_bundle(smolvlm_bundle, tmp_path / "int4", weights="int4")
    sizes = [
        m.components["decoder"].weight_bytes for m in (small, read_manifest(int8_vlm), read_manifest(smolvlm_bundle))
    ]
    assert sizes[0] < sizes[1] < 0.5 * sizes[2]
    assert small.components["decoder"].scheme == "int4"
    assert small.components["vision_encoder"].scheme == "int8"


def test_the_report_says_what_was_measured(smolvlm_bundle: Path, int8_vlm: Path) -> None:
    report, manifest = read_report(int8_vlm), read_manifest(int8_vlm)
    assert report.weight_bytes == manifest.weight_bytes
    assert report.fp32_bytes == read_manifest(smolvlm_bundle).weight_bytes
    assert set(report.tasks) == {"colour", "name", "count", "all"}
    assert report.tasks["all"].n == 3
    assert report.teacher_forced is not None
    # One position per byte of an answer, one for the blank that the template puts before it, and one for its end: the
    # tokenizer of the tiny checkpoint knows bytes only.
    assert report.teacher_forced.num_tokens == len(" red") + len(" a cat") + len(" 42") + 3
    assert 0 < report.teacher_forced.kl_mean <= report.teacher_forced.kl_p99
    assert [gate.model_dump_json() for gate in report.gates] == [gate.model_dump_json() for gate in manifest.gates]
    assert all(0.95 < part.canary_cosine < 1 for part in report.components.values())


def test_a_dual_encoder_is_measured_by_cosine_recall_and_labels(int8_clip: Path) -> None:
    report = read_report(int8_clip)
    assert set(report.likenesses) == {"image", "text"}
    # 8-bit weights and activations on random matrices: known near 1 % per layer, two layers deep.
    assert all(each.cosine_mean > 0.995 and each.n >= len(CAPTIONS) for each in report.likenesses.values())
    assert {"recall@1/image-to-text", "recall@1/text-to-image", "zero-shot/colour", "all"} <= set(report.tasks)
    assert all(task.n == len(CAPTIONS) for name, task in report.tasks.items() if name != "all")


@pytest.mark.parametrize("weights", ["int8-rtn", "fp16"])
def test_a_variant_for_tensorrt_keeps_a_float16_cache_and_is_replayed_with_it(
    bundle_of, tmp_path: Path, weights: str
) -> None:
    parent = bundle_of("smolvlm", "portable")
    variant = quantize_bundle(parent, tmp_path / "variant", weights=weights, options=Options(target="tensorrt"))
    assert {state.dtype for state in variant.states} == {"float16"}
    recorded = load_golden(tmp_path / "variant" / GOLDEN)["decoder"].inputs
    assert {recorded[state.input].dtype.name for state in variant.states} == {"float16"}
    assert recorded["inputs_embeds"].dtype == np.float32
    decoder = next(gate for gate in variant.gates if gate.name.endswith("decoder"))
    assert decoder.value > 0.98  # of random weights, whose int8 activations turn codes; fp16 gives 1.0000


def test_a_decoder_that_stays_float32_keeps_a_float32_cache_on_tensorrt(bundle_of, tmp_path: Path) -> None:
    parent = bundle_of("smolvlm", "portable")
    options = Options(target="tensorrt")
    variant = quantize_bundle(parent, tmp_path / "variant", weights="fp32,vision_encoder=fp16", options=options)
    assert {state.dtype for state in variant.states} == {"float32"}


def test_without_an_evaluation_the_report_says_so(clip_bundle: Path, tmp_path: Path) -> None:
    manifest = quantize_bundle(clip_bundle, tmp_path / "int8", weights="int8")
    report = read_report(tmp_path / "int8")
    assert report.tasks == {}
    assert "no evaluation was given" in report.not_measured[0]
    assert {gate.name for gate in manifest.gates} == {"canary_cosine/vision_encoder", "canary_cosine/text_encoder"}


def test_the_plan_is_shown_before_it_is_carried_out_and_sizes_are_told_as_they_come(clip_bundle, tmp_path) -> None:
    told: list[str] = []
    quantize_bundle(
        clip_bundle,
        tmp_path / "int8",
        weights="int8",
        progress=told.append,
        show=lambda draft: told.append(draft.plans["vision_encoder"].detail),
    )
    plan = next(at for at, line in enumerate(told) if "w8a8" in line and "many rows" in line)
    size = next(at for at, line in enumerate(told) if line.startswith("vision_encoder: ") and " MB, int8" in line)
    assert plan < size


def test_unknown_weights_write_nothing(clip_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(
        QuantizationError, match="unknown weights 'int3'; known: fp32, fp16, int8, int8-rtn, int8-static, int4"
    ):
        quantize_bundle(clip_bundle, tmp_path / "out", weights="int3")
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_bundle_is_not_quantized_again(int8_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="quantized already"):
        quantize_bundle(int8_clip, tmp_path / "out", weights="int8")
    assert list(tmp_path.iterdir()) == []


def test_the_parent_is_never_the_output(clip_bundle: Path) -> None:
    with pytest.raises(QuantizationError, match="choose another -o"):
        quantize_bundle(clip_bundle, clip_bundle / ".." / clip_bundle.name, weights="int8", overwrite=True)
    open_bundle(clip_bundle)


def test_an_existing_output_is_kept_unless_told(clip_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    quantize_bundle(clip_bundle, output, weights="int8")
    with pytest.raises(BundleError, match="--overwrite"):
        quantize_bundle(clip_bundle, output, weights="int4")
    quantize_bundle(clip_bundle, output, weights="int4", overwrite=True)
    assert read_report(output).weights == "int4"


def test_a_failure_leaves_nothing_behind(clip_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(clip_bundle, broken)
    recordings = load_golden(broken / GOLDEN)
    save_golden(broken, {"vision_encoder": recordings["vision_encoder"]})
    seal(broken, read_manifest(broken))
    with pytest.raises(BundleFileError, match="no run of text_encoder"):
        quantize_bundle(broken, tmp_path / "out", weights="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_an_altered_parent_is_refused(clip_bundle: Path, tmp_path: Path) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(clip_bundle, altered)
    data = altered / "text_encoder.onnx.data"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    with pytest.raises(BundleFileError, match="altered"):
        quantize_bundle(altered, tmp_path / "out", weights="int8")


def test_a_variant_that_no_longer_follows_its_parent_fails_its_gate(clip_bundle: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    shutil.copytree(clip_bundle, planted)
    recordings = load_golden(planted / GOLDEN)
    noise = np.random.default_rng(0)
    outputs = {k: noise.standard_normal(v.shape).astype(v.dtype) for k, v in recordings["text_encoder"].outputs.items()}
    save_golden(planted, {**recordings, "text_encoder": Recording(recordings["text_encoder"].inputs, outputs)})
    seal(planted, read_manifest(planted))
    manifest = quantize_bundle(planted, tmp_path / "out", weights="int8")
    assert manifest.has_failed_gate
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["gates"][1]["passed"] is False


def test_an_evaluation_of_the_wrong_kind_is_refused(clip_bundle: Path, smolvlm_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="no captions"):
        quantize_bundle(clip_bundle, tmp_path / "out", weights="int8", evaluation=QUESTIONS)
    with pytest.raises(QuantizationError, match="no questions"):
        quantize_bundle(smolvlm_bundle, tmp_path / "out", weights="int8", evaluation=Evaluation(captions=CAPTIONS))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("component", ["vision_encoder", "text_encoder"])
def test_no_linear_layer_of_an_encoder_runs_in_float(int8_clip: Path, run, component: str) -> None:
    model = ir.load(int8_clip / f"{component}.onnx")
    planned = sum(name.endswith(".int8") for name in model.graph.initializers)
    run(model, **load_golden(int8_clip / GOLDEN)[component].inputs)
    ops = run.optimized_ops()
    tables = ops.count("GatherBlockQuantized")
    assert ops.count("MatMulIntegerToFloat") == planned - tables > 0
    assert not {"MatMul", "Gemm", "FusedMatMul"} & set(ops)


def test_dual_writes_a_second_decoder_over_the_same_signature(smolvlm_bundle: Path, tmp_path: Path) -> None:
    manifest = quantize_bundle(
        smolvlm_bundle,
        tmp_path / "dual",
        weights="int4-rtn",
        options=Options(profile="dual"),
        evaluation=QUESTIONS,
        limits=FEW,
    )
    steps, prompts = manifest.components["decoder"], manifest.components["decoder_prefill"]
    assert (steps.scheme, prompts.scheme) == ("int4", "int8")
    assert prompts.file == "decoder_prefill.onnx"
    assert (prompts.inputs, prompts.outputs) == (steps.inputs, steps.outputs)
    assert (steps.role, prompts.role) == ("decoder", "decoder")
    assert (steps.phase, prompts.phase) == ("step", "prompt")
    written = open_bundle(tmp_path / "dual", allow_ungated=True).manifest
    assert written.components == manifest.components
    assert written.graph("decoder", "prompt") == "decoder_prefill"
    assert written.graph("decoder", "step") == written.graph("decoder") == "decoder"
    assert written.states == read_manifest(smolvlm_bundle).states
    assert manifest.name.endswith("-int4-rtn-dual")
    report = read_report(tmp_path / "dual")
    assert [profile.name for profile in report.profiles if profile.is_chosen] == ["dual"]
    assert report.components["decoder_prefill"].canary_cosine > 0.99
    (linear, _) = report.components["decoder_prefill"].decisions
    assert (linear.kind, linear.chosen, linear.doubt) == ("linear", "w8a8 8-bit", "")
    weight_only = {f"matmul_nbits 8-bit b{size}" for size in (128, 64, 32)}
    assert {form.form for form in linear.forms} == {"w8a8 8-bit", *weight_only}
    assert sum(shape.num_layers for shape in linear.shapes) == linear.num_layers == 21
    assert report.teacher_forced is not None
    assert report.teacher_forced.kl_mean > 0


def test_the_chosen_profiles_predicted_bytes_are_those_written(smolvlm_bundle: Path, int8_vlm: Path) -> None:
    report = read_report(int8_vlm)
    (chosen,) = [profile for profile in report.profiles if profile.is_chosen]
    # Layers that became one share the step and the zero point of their input, 5 bytes; sizes of splits are rounded up.
    assert 0 <= chosen.weight_bytes - report.weight_bytes < 200


@pytest.mark.parametrize("weights", ["int8-static", "int4-gptq", "int4-awq"])
def test_a_calibrated_recipe_uses_its_samples(smolvlm_bundle: Path, tmp_path: Path, weights: str) -> None:
    manifest = quantize_bundle(smolvlm_bundle, tmp_path / "out", weights=weights, calibration=QUESTIONS)
    report = read_report(tmp_path / "out")
    assert report.calibration is not None
    assert report.calibration.num_samples == 3
    assert find_linears(open_graph(tmp_path / "out" / "decoder.onnx").graph) == []
    assert manifest.components["decoder"].scheme == weights.split("-")[0] or weights == "int8-static"
    assert not manifest.has_failed_gate


def test_a_calibrated_recipe_without_samples_says_what_to_pass(smolvlm_bundle: Path, tmp_path: Path) -> None:
    for calibration, words in ((None, "is missing"), (Evaluation(), "holds no samples")):
        with pytest.raises(
            QuantizationError, match=rf"int4-gptq: .*calibration {words}\. Pass --calibration FILE.jsonl"
        ):
            quantize_bundle(smolvlm_bundle, tmp_path / "out", weights="int4-gptq", calibration=calibration)
    with pytest.raises(QuantizationError, match=r"the search for bits: .*calibration is missing"):
        quantize_bundle(smolvlm_bundle, tmp_path / "out", weights="int4", options=Options(max_kl=0.1))
    assert list(tmp_path.iterdir()) == []


TEXTS = Evaluation(questions=[Asked(word, images=()) for word in ("red", "a cat", "42")], source="texts.jsonl")


def test_a_variant_measured_on_texts_alone_says_which_gates_that_leaves_open(
    smolvlm_bundle: Path, tmp_path: Path
) -> None:
    manifest = quantize_bundle(smolvlm_bundle, tmp_path / "out", weights="int8", evaluation=TEXTS, limits=FEW)
    assert {each.name: each.reason for each in manifest.unmeasured} == dict.fromkeys(
        ("correlation/image_features", "spread/image_features", "image_sensitivity"), "no sample has an image"
    )
    assert {gate.name for gate in manifest.gates if gate.basis == "samples"} == {
        *("kl_mean", "clear_agreement", "accuracy_loss_points/low", "accuracy_loss_points/high")
    }
    report = read_report(tmp_path / "out")
    assert report.unmeasured == manifest.unmeasured
    for file in ("manifest.json", "report.json"):
        assert "nan" not in (tmp_path / "out" / file).read_text().casefold()


def test_too_few_samples_are_refused_before_anything_is_made(smolvlm_bundle: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(QuantizationError, match=r"texts.jsonl gives 3 answers to judge, and no fewer than 75"):
        quantize_bundle(smolvlm_bundle, tmp_path / "out", weights="int4", evaluation=TEXTS, progress=told.append)
    assert told == []
    # A search may give any layer more bits: the limits are those of what no single name asked for.
    with pytest.raises(QuantizationError, match="no fewer than 75"):
        quantize_bundle(
            *(smolvlm_bundle, tmp_path / "out"),
            weights="int8",
            options=Options(max_kl=0.1),
            calibration=TEXTS,
            evaluation=TEXTS,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_tower_that_wants_images_is_named_with_what_leaves_it_out(smolvlm_bundle: Path, tmp_path: Path) -> None:
    weights = "int8-static,embed_tokens=fp32"
    without = "int8-static,embed_tokens=fp32,vision_encoder=int8"
    words = (
        rf"int8-static fits the vision encoder to images, and no sample of texts.jsonl has one.*--weights {without},"
    )
    with pytest.raises(QuantizationError, match=words):
        quantize_bundle(smolvlm_bundle, tmp_path / "out", weights=weights, calibration=TEXTS)
    manifest = quantize_bundle(smolvlm_bundle, tmp_path / "out", weights=without, calibration=TEXTS)
    assert manifest.components["vision_encoder"].scheme == "int8"
    assert manifest.components["decoder"].scheme == "int8-static"


@dataclass(frozen=True)
class Searched:
    """A variant whose bits were searched for.

    Attributes:
        folder: Of the variant.
        fewest_bytes: Of all layers in the weights asked for.
        max_bytes: Allowed.
        told: Its lines of progress.
    """

    folder: Path
    fewest_bytes: int
    max_bytes: int
    told: Sequence[str]


@pytest.fixture(scope="module")
def searched(smolvlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder, told = tmp_path_factory.mktemp("searched"), list[str]()
    fewest_bytes = quantize_bundle(smolvlm_bundle, folder / "small", weights="ternary").weight_bytes
    max_bytes = fewest_bytes + 8000
    quantize_bundle(
        smolvlm_bundle,
        folder / "mixed",
        weights="ternary",
        options=Options(max_bytes=max_bytes),
        calibration=QUESTIONS,
        evaluation=QUESTIONS,
        limits=FEW,
        progress=told.append,
    )
    return Searched(folder / "mixed", fewest_bytes, max_bytes, told)


def test_a_limit_of_bytes_is_kept_with_as_many_bits_as_fit(searched: Searched) -> None:
    mixed, report = read_manifest(searched.folder), read_report(searched.folder)
    assert searched.fewest_bytes < mixed.weight_bytes <= searched.max_bytes
    assert mixed.components["decoder"].scheme == "mixed"
    assert mixed.name.endswith("-ternary-mixed")
    assert {row.form.bits for row in report.sensitivity} == {2, 4, 8}
    (told,) = [line for line in searched.told if line.startswith("KL mean")]
    assert report.teacher_forced is not None
    assert f"measured {report.teacher_forced.kl_mean:.4f}" in told


def test_a_limit_of_bytes_that_no_bits_keep_writes_nothing(smolvlm_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="--max-bytes 99: with ternary the weights take at least"):
        quantize_bundle(
            smolvlm_bundle, tmp_path / "no", weights="ternary", options=Options(max_bytes=99), calibration=QUESTIONS
        )
    assert list(tmp_path.iterdir()) == []


READER = """
import json, sys
for name in ("onnx_ir", "onnx", "onnxscript", "onnxruntime", "torch", "transformers", "safetensors"):
    sys.modules[name] = None
from bundle.directory import open_bundle
from bundle.form import Form
from bundle.report import read_report
report = read_report(open_bundle(sys.argv[1], allow_ungated=True))
assert all(type(row.form) is Form for row in report.sensitivity)
print(report.model_dump_json())
"""


def test_a_machine_without_graph_libraries_reads_a_report(searched: Searched) -> None:
    command = [sys.executable, "-c", READER, str(searched.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((searched.folder / "report.json").read_text(encoding="utf-8"))
    assert found["sensitivity"]
    assert found["gates"]


@pytest.mark.parametrize("weights", ["int8", "int4", "ternary"])
def test_encoders_that_keep_8_bits_are_held_to_the_limits_of_8_bits(clip_bundle: Path, weights: str) -> None:
    draft = make_draft(open_bundle(clip_bundle), weights, Options(tune=False), print)
    assert limits_row(draft) == "int8"
