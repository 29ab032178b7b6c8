"""Checkpoints that bitsandbytes quantized, restored as bitsandbytes itself does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.exporter import export_checkpoint
from quant.weights.bnb4 import quantize_flat

KINDS = {
    "nf4": {"kind": "nf4"},
    "nf4-nested-float16": {"kind": "nf4", "nested": True, "dtype": "float16"},
    "fp4-bfloat16": {"kind": "fp4", "dtype": "bfloat16"},
    "int8": {"kind": "int8"},
}
IDS = np.array([[5, 80, 33, 200, 7, 150, 99, 12]])
LAYER = "model.text_model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module", autouse=True)
def _bitsandbytes() -> None:
    """Import both here, so that collecting takes neither."""
    global bitsandbytes, torch
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="its formats are made by itself")
    import torch


@dataclass(frozen=True)
class Made:
    name: str
    model: Any
    bundle: Path


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest, save_bitsandbytes: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Made:
    folder = tmp_path_factory.mktemp("bitsandbytes")
    model = save_bitsandbytes(folder / "checkpoint", **KINDS[request.param])
    export_checkpoint(folder / "checkpoint", folder / "bundle")
    return Made(request.param, model, folder / "bundle")


@pytest.fixture
def checkpoint(save_bitsandbytes: Callable[..., Any], tmp_path: Path) -> Path:
    save_bitsandbytes(tmp_path / "checkpoint", "nf4")
    return tmp_path / "checkpoint"


def quantized_layers(model: Any) -> dict[str, Any]:
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def dequantized(layer: Any) -> torch.Tensor:
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, scales)


def test_matrices_are_those_that_bitsandbytes_restores(
    made: Made, decoder_matrices: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    """Bit for bit, once ours are rounded to the format that the weights had before, as bitsandbytes rounds its own."""
    found = decoder_matrices(made.bundle)
    layers = quantized_layers(made.model)
    assert len(layers) == 3 * 7
    for name, layer in layers.items():
        expected = dequantized(layer)
        ours = torch.from_numpy(found[f"{name}.weight"].copy()).to(expected.dtype)
        assert_array_equal(ours.float().numpy(), expected.float().numpy())


def test_logits_are_those_of_bitsandbytes_layers(made: Made, open_graphs: Any) -> None:
    """4-bit layers multiply restored weights in float32; int8 ones round their inputs, and float16 ones the weights."""
    with torch.no_grad():
        expected = made.model(input_ids=torch.from_numpy(IDS)).logits.numpy()
    graphs = open_graphs(made.bundle)
    logits = graphs.decoder(1, IDS.shape[1]).step(graphs.embed(IDS))
    tolerance = 1e-5 if made.name == "nf4" else 3e-2
    assert np.linalg.norm(logits - expected) < tolerance * np.linalg.norm(expected)


def test_what_was_stored_comes_back_when_the_bundle_is_quantized_alike(
    checkpoint: Path, tmp_path: Path, decoder_matrices: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    """Codes and scales of NF4 without nested scales, from checkpoint through float32 to MatMulBnb4."""
    export_checkpoint(checkpoint, tmp_path / "bundle")
    stored = load_file(checkpoint / "model.safetensors")
    packed, absmax = quantize_flat(decoder_matrices(tmp_path / "bundle")[f"{LAYER}.weight"], "nf4", 64)
    assert_array_equal(packed, stored[f"{LAYER}.weight"].ravel())
    assert_array_equal(absmax, stored[f"{LAYER}.weight.absmax"])


def test_blocks_run_on_from_row_to_row(
    save_bitsandbytes: Callable[..., Any],
    checkpoints: ModuleType,
    tmp_path: Path,
    decoder_matrices: Callable[[Path], dict[str, np.ndarray]],
) -> None:
    """Against the weights before: NF4 costs 9 % on normal ones. Rows of 48 weights share blocks of 64.

    bitsandbytes 0.50 is no reference here: its AVX-512 kernel takes other blocks' scales where a row ends inside one.
    """
    save_bitsandbytes(tmp_path / "checkpoint", "nf4", width=48)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    sizes = {"hidden_size": 48, "intermediate_size": 128}
    checkpoints.save_smolvlm(tmp_path / "dense", checkpoints.smolvlm_config(sizes))
    before = load_file(tmp_path / "dense" / "model.safetensors")[f"{LAYER}.weight"]
    restored = decoder_matrices(tmp_path / "bundle")[f"{LAYER}.weight"]
    assert np.linalg.norm(restored - before) < 0.11 * np.linalg.norm(before)


def refused(checkpoint: Path, message: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error, match=message):
        export_checkpoint(checkpoint, checkpoint.parent / "bundle")
    assert not (checkpoint.parent / "bundle").exists()


def without(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {name: weight for name, weight in weights.items() if name not in names}


def test_four_bit_codes_without_their_scales_are_refused(checkpoint: Path, edit_quantized: Callable[..., None]) -> None:
    edit_quantized(checkpoint, without(f"{LAYER}.weight.absmax"))
    refused(checkpoint, rf"{LAYER}\.weight is stored as nf4 without its absmax")


def test_codes_that_nothing_describes_are_refused(checkpoint: Path, edit_quantized: Callable[..., None]) -> None:
    edit_quantized(checkpoint, without(f"{LAYER}.weight.quant_state.bitsandbytes__nf4"))
    refused(checkpoint, rf"{LAYER}\.weight \(U8\), and lack what bitsandbytes stores beside them")


def test_codes_that_do_not_fill_their_matrix_are_refused(checkpoint: Path, edit_quantized: Callable[..., None]) -> None:
    name = f"{LAYER}.weight"
    edit_quantized(checkpoint, lambda weights: weights | {name: weights[name][:-1].clone()})
    refused(checkpoint, r"4095 bytes of codes, \[128\] scales and \[16\] levels do not make a \[128, 64\] matrix")


def test_weights_of_another_kind_than_promised_are_refused(
    checkpoint: Path, edit_quantized: Callable[..., None]
) -> None:
    edit_quantized(checkpoint, bnb_4bit_quant_type="fp4")
    refused(checkpoint, r"is stored as nf4; quantization_config says fp4")


def test_quantized_layer_that_the_config_skips_is_refused(
    checkpoint: Path, edit_quantized: Callable[..., None]
) -> None:
    edit_quantized(checkpoint, llm_int8_skip_modules=["model.text_model.layers.1"])
    refused(checkpoint, r"layers\.1\..* is stored as nf4, but llm_int8_skip_modules lists its layer")


def test_promised_but_absent_quantization_is_refused(
    smolvlm_checkpoint: Path, tmp_path: Path, edit_quantized: Callable[..., None]
) -> None:
    folder = shutil.copytree(smolvlm_checkpoint, tmp_path / "checkpoint")
    edit_quantized(folder, quant_method="bitsandbytes", load_in_8bit=True)
    refused(folder, "promises int8 weights; the checkpoint holds none")


def test_codes_without_any_config_are_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    del config["quantization_config"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    refused(checkpoint, r"21 weights are stored as bytes, such as .*no quantization_config")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_in_8bit": True}, "load_in_4bit True, load_in_8bit True; one of them"),
        ({"bnb_4bit_quant_type": "af4"}, "bnb_4bit_quant_type 'af4'; known: nf4, fp4"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str, checkpoint: Path, edit_quantized: Callable[..., None]
) -> None:
    edit_quantized(checkpoint, **settings)
    refused(checkpoint, message, UnsupportedConfigError)


def test_quantization_in_a_nested_config_is_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (checkpoint / "config.json").write_text(json.dumps(config))
    refused(checkpoint, "quantization_config stands in text_config", UnsupportedConfigError)
