"""Bundles that keep a GGUF's blocks: number for number the file's, judged by fp32 arithmetic, and usable."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.testing import assert_array_equal

from bundle.directory import open_bundle, read_manifest
from bundle.errors import BundleError, GateError, QuantizationError, UnsupportedConfigError
from bundle.prompt import Turn
from bundle.report import read_report
from export.exporter import export_checkpoint
from export.kept_bundle import export_kept
from graphs.store import open_graph
from quant.evaluation.gate_samples import FileQuestion
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from runtime.one_request import VisionLanguageRunner
from serving.oneshot import answer
from serving.protocol import Message, SamplingParams, TextPart

PREFIX = "model.text_model"
LAYER = f"{PREFIX}.layers.0"


@pytest.fixture(scope="module")
def checkpoint(gguf_files: ModuleType, checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table and head tied; its rows fill blocks of 32."""
    folder = tmp_path_factory.mktemp("kept") / "tiny"
    checkpoints.save_smolvlm(folder, checkpoints.smolvlm_config(gguf_files.SIZES))
    return folder


@pytest.fixture
def maker(gguf_files: ModuleType, checkpoint: Path, tmp_path: Path) -> Any:
    return gguf_files.Maker(tmp_path, checkpoint)


def unpacked(stored: np.ndarray, bits: int) -> np.ndarray:
    """Codes [..., n] of bytes [..., n * bits / 8], the first in the lowest bits."""
    if bits == 8:
        return stored
    return np.stack([stored & 15, stored >> 4], axis=-1).reshape(*stored.shape[:-1], -1)


def held_weight(bundle: Path, name: str, bits: int, component: str = "decoder") -> np.ndarray:
    """The matrix [N, K] that a graph's codes, scales and offsets stand for, by the operator's definition."""
    found = open_graph(bundle / f"{component}.onnx").graph.initializers
    codes = unpacked(found[f"{name}.int{bits}"].const_value.numpy(), bits).astype(np.float32)
    scales = found[f"{name}.scale"].const_value.numpy()
    blocks = codes.reshape(*scales.shape, -1) - np.float32(2 ** (bits - 1))
    weights = blocks * scales[..., None]
    if f"{name}.offset" in found:
        weights = weights + found[f"{name}.offset"].const_value.numpy().T[..., None]
    return weights.reshape(len(scales), -1)


JOINED = {
    "self_attn.q_proj+k_proj+v_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj+up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""A variant's layers, and the checkpoint's that they hold one below the other."""


@pytest.mark.parametrize(("kind", "bits"), [(Kind.Q4_0, 4), (Kind.Q4_1, 4), (Kind.Q5_1, 8), (Kind.Q8_0, 8)])
def test_stored_numbers_are_those_that_would_be_restored(kind: Kind, bits: int, maker: Any, tmp_path: Path) -> None:
    """Queries and keys included, whose rows are put back in order."""
    file = maker.write(kind, Kind.Q8_0)
    export_checkpoint(maker.checkpoint, tmp_path / "fp32", decoder_gguf=file)
    export_kept(maker.checkpoint, tmp_path / "kept", file)
    restored = open_graph(tmp_path / "fp32" / "decoder.onnx").graph.initializers
    for name, modules in JOINED.items():
        rows = [restored[f"{LAYER}.{module}.weight"].const_value.numpy().T for module in modules]
        assert_array_equal(held_weight(tmp_path / "kept", f"{LAYER}.{name}.weight", bits), np.concatenate(rows))
    head = restored["lm_head.weight"].const_value.numpy().T
    assert_array_equal(held_weight(tmp_path / "kept", "lm_head.weight", 8), head)
    table = held_weight(tmp_path / "kept", f"{PREFIX}.embed_tokens.weight", 8, "embed_tokens")
    assert_array_equal(table, head)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_kept_bundle_answers_as_the_restored_one(kind: Kind, maker: Any, tmp_path: Path) -> None:
    file = maker.write(kind, Kind.Q8_0)
    export_checkpoint(maker.checkpoint, tmp_path / "fp32", decoder_gguf=file)
    export_kept(maker.checkpoint, tmp_path / "kept", file)
    found = []
    for name in ("fp32", "kept"):
        runner = VisionLanguageRunner(open_bundle(tmp_path / name, allow_ungated=True))
        found.append(runner.answer_logits(runner.prompt([Turn("user", ("Hello",))], []), [5, 70, 12, 31]))
    # activations are rounded to int8 a block, half a percent of their norm; nibbles in another order give order 1
    assert np.linalg.norm(found[1] - found[0]) < 0.05 * np.linalg.norm(found[0])


def test_engine_serves_a_kept_bundle(maker: Any, tmp_path: Path) -> None:
    """The recorded run is replayed at load; the canary's limit is the one that the export kept."""
    export_kept(maker.checkpoint, tmp_path / "kept", maker.write(Kind.Q4_1, Kind.Q8_0))
    found = asyncio.run(answer(tmp_path / "kept", Message("user", (TextPart("Hello"),)), SamplingParams(5, 0.0)))
    runner = VisionLanguageRunner(open_bundle(tmp_path / "kept", allow_ungated=True))
    prefilled = runner.prefill(runner.prompt([Turn("user", ("Hello",))], []), 5)
    assert list(found.token_ids)[:5] == runner.reply_ids(prefilled, 5)[: len(found.token_ids)]


def test_manifest_says_what_is_held_and_what_was_restored(maker: Any, tmp_path: Path) -> None:
    said: list[str] = []
    file = maker.write(Kind.Q4_0, Kind.Q4_1, ffn_down=Kind.F16, attn_q=Kind.Q8_0)
    manifest = export_kept(maker.checkpoint, tmp_path / "kept", file, progress=said.append)
    decoder, table = manifest.components["decoder"], manifest.components["embed_tokens"]
    assert decoder.scheme == "mixed"
    assert set(decoder.detail.splitlines()) == {
        "5 x Q4_0 kept: 4-bit b32, the file's own numbers",
        "1 x Q8_0 kept: 8-bit b32, the file's own numbers",
        "1 x Q4_1 kept: 4-bit b32, the file's own numbers",
        "1 x F16 restored to fp32",
    }
    # no look-up adds offsets to rows
    assert (table.scheme, table.detail) == ("fp32", "1 x Q4_1 restored to fp32")
    assert f"decoder: restored are {LAYER}.mlp.down_proj.weight (F16)" in said
    assert manifest.components["vision_encoder"].scheme == "fp32"


@pytest.mark.parametrize(("kind", "scheme"), [(Kind.Q4_0, "int4"), (Kind.Q8_0, "int8-weight-only")])
def test_one_width_gives_the_scheme_its_name(kind: Kind, scheme: str, maker: Any, tmp_path: Path) -> None:
    manifest = export_kept(maker.checkpoint, tmp_path / "kept", maker.write(kind, kind))
    assert manifest.components["decoder"].scheme == scheme


def samples(num: int) -> Callable[[Any], Evaluation]:
    texts = ("hello there", "what is it", "say a word", "count to ten")
    questions = [FileQuestion.plain("text", (), f"{texts[at % 4]} {at}", "a b c") for at in range(num)]
    return lambda bundle: Evaluation(questions=questions, source="test", no_accuracy="random weights know no answers")


@pytest.mark.parametrize(("kind", "limit"), [(Kind.Q4_1, 0.05), (Kind.Q8_0, 0.02)], ids=["4 bits", "8 bits"])
def test_measured_bundle_is_served_where_its_gates_pass(kind: Kind, limit: float, maker: Any, tmp_path: Path) -> None:
    file = maker.write(kind, Kind.Q8_0)
    manifest = export_kept(maker.checkpoint, tmp_path / "kept", file, samples=samples(4))
    gates = {gate.name: gate for gate in manifest.gates}
    assert gates["kl_mean"].limit == limit
    assert gates["kl_mean"].n == 28  # four answers: the template's blank, five characters, the end
    assert manifest.is_gated is all(gate.passed for gate in manifest.gates)
    report = read_report(open_bundle(tmp_path / "kept", allow_ungated=True))
    assert report.weights == f"kept from {file.name}"
    assert report.teacher_forced is not None
    # the same numbers in another arithmetic: rounding the weights to 4 bits anew costs a hundred times that
    assert report.teacher_forced.kl_mean < 0.01


def test_bundle_that_was_not_measured_is_not_served_unasked(maker: Any, tmp_path: Path) -> None:
    export_kept(maker.checkpoint, tmp_path / "kept", maker.write(Kind.Q8_0, Kind.Q8_0))
    with pytest.raises(GateError, match="never measured on samples"):
        open_bundle(tmp_path / "kept")
    open_bundle(tmp_path / "kept", allow_ungated=True)


def test_kept_blocks_are_not_rounded_again(maker: Any, tmp_path: Path) -> None:
    export_kept(maker.checkpoint, tmp_path / "kept", maker.write(Kind.Q4_0, Kind.Q8_0))
    with pytest.raises(QuantizationError, match="quantized already"):
        quantize_bundle(tmp_path / "kept", tmp_path / "again", weights="int8")


def test_file_without_blocks_to_keep_is_refused(maker: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedConfigError, match=r"holds F16, F32, and kept are blocks of Q4_0.*without --keep-quan"
    ):
        export_kept(maker.checkpoint, tmp_path / "kept", maker.write(Kind.F16, Kind.F16))
    assert not (tmp_path / "kept").exists()


def test_nothing_is_left_beside_the_bundle(maker: Any, tmp_path: Path) -> None:
    file = maker.write(Kind.Q4_0, Kind.Q8_0)
    export_kept(maker.checkpoint, tmp_path / "kept", file)
    assert {path.name for path in tmp_path.iterdir()} == {"kept", file.name}
    with pytest.raises(BundleError, match="exists"):
        export_kept(maker.checkpoint, tmp_path / "kept", file)
    digest = read_manifest(tmp_path / "kept").source_sha256
    shutil.rmtree(tmp_path / "kept")
    export_checkpoint(maker.checkpoint, tmp_path / "kept", decoder_gguf=file)
    assert read_manifest(tmp_path / "kept").source_sha256 == digest
