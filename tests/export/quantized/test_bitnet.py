"""BitNet checkpoints: every layout that transformers stores, restored as transformers computes with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file

from bundle.errors import CheckpointError, UnsupportedConfigError
from bundle.form import Form
from export.exporter import export_checkpoint
from graphs.store import open_graph, save_graph
from quant.rounding.block_codes import BlockCodes
from quant.weights.matmul_nbits import MatMulNBits

LAYOUTS = {
    "packed-divided": ("bitlinear", "offline", True),
    "packed-multiplied": ("autobitlinear", "offline", True),
    "unpacked": ("autobitlinear", "offline", False),
    "online": ("autobitlinear", "online", False),
}
IDS = np.array([[5, 80, 33, 200, 7, 150, 99, 12]])
LAYER = "model.text_model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module", autouse=True)
def _torch() -> None:
    """Import torch here, so that collecting takes none."""
    global torch
    import torch


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(
    request: pytest.FixtureRequest, save_bitnet: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    """A model of transformers and the bundle of its checkpoint."""
    linear_class, mode, packs = LAYOUTS[request.param]
    folder = tmp_path_factory.mktemp("bitnet")
    model = save_bitnet(folder / "checkpoint", linear_class, mode, packs=packs)
    export_checkpoint(folder / "checkpoint", folder / "bundle")
    return model, folder / "bundle"


@pytest.fixture
def checkpoint(save_bitnet: Callable[..., Any], tmp_path: Path) -> Path:
    save_bitnet(tmp_path / "checkpoint", "autobitlinear")
    return tmp_path / "checkpoint"


def restored(layer: Any, bitnet_layers: ModuleType) -> np.ndarray:
    """The matrix that a layer of transformers multiplies by, by its own functions."""
    if isinstance(layer, bitnet_layers.BitLinear):
        return (bitnet_layers.unpack_weights(layer.weight, torch.float32) / layer.weight_scale).numpy()
    if layer.online_quant:
        return bitnet_layers.WeightQuant.apply(layer.weight).numpy()
    return (layer.weight * layer.weight_scale).numpy()


def test_matrices_are_those_that_transformers_multiplies_by(
    pair: tuple[Any, Path], bitnet_layers: ModuleType, decoder_matrices: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    model, bundle = pair
    found = decoder_matrices(bundle)
    kinds = (bitnet_layers.BitLinear, bitnet_layers.AutoBitLinear)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    assert len(layers) == 3 * 7
    with torch.compiler.set_stance("force_eager"):
        for name, layer in layers.items():
            expected, matrix = restored(layer, bitnet_layers), found[f"{name}.weight"]
            assert_array_equal(np.sign(matrix), np.sign(expected))
            # online: the mean of absolute weights is summed in another order; else a product of two float32 numbers
            tolerance = 3e-7 if getattr(layer, "online_quant", False) else 0
            np.testing.assert_allclose(matrix, expected, rtol=tolerance, atol=0)
            assert len(np.unique(np.abs(matrix))) == 2


def test_logits_are_transformers_up_to_its_rounding_of_activations(pair: tuple[Any, Path], open_graphs: Any) -> None:
    """transformers rounds each layer's input to int8, which the graph does not: 3 % here, where no norm calms it."""
    model, bundle = pair
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = model(input_ids=torch.from_numpy(IDS)).logits.numpy()
    graphs = open_graphs(bundle)
    logits = graphs.decoder(1, IDS.shape[1]).step(graphs.embed(IDS))
    assert np.linalg.norm(logits - expected) < 6e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize("block_size", [32, 64])
def test_two_bits_hold_the_checkpoints_matrices_exactly(
    pair: tuple[Any, Path],
    block_size: int,
    tmp_path: Path,
    decoder_matrices: Callable[[Path], dict[str, np.ndarray]],
    open_graphs: Any,
) -> None:
    """From checkpoint to MatMulNBits without a rounded weight; logits differ by int8 activations, 3 % here."""
    _, bundle = pair
    expected = {name: array for name, array in decoder_matrices(bundle).items() if ".layers." in name}
    model = open_graph(bundle / "decoder.onnx")
    MatMulNBits(dict.fromkeys(expected, Form(2, block_size, "ternary")))(model)
    smaller = shutil.copytree(bundle, tmp_path / "smaller")
    save_graph(model, smaller / "decoder.onnx")
    stored = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    for name, matrix in expected.items():
        scales = stored[f"{name}.scale"]
        bits = np.unpackbits(stored[f"{name}.int2"].reshape(len(scales), -1), axis=1, bitorder="little")
        codes = bits[:, 0::2] + 2 * bits[:, 1::2]
        assert_array_equal(BlockCodes(codes, scales, 2).weights(matrix.shape[1]), matrix)
    logits = [g.decoder(1, IDS.shape[1]).step(g.embed(IDS)) for g in (open_graphs(bundle), open_graphs(smaller))]
    assert np.linalg.norm(logits[1] - logits[0]) < 6e-2 * np.linalg.norm(logits[0])


def test_layers_that_the_config_skips_keep_their_weights(
    checkpoint: Path, smolvlm_checkpoint: Path, tmp_path: Path, decoder_matrices: Callable[[Path], Any]
) -> None:
    export_checkpoint(checkpoint, tmp_path / "bundle")
    dense = load_file(smolvlm_checkpoint / "model.safetensors")
    tied = decoder_matrices(tmp_path / "bundle")["lm_head.weight"]
    assert_array_equal(tied, dense["model.text_model.embed_tokens.weight"])


def refused(checkpoint: Path, message: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error, match=message):
        export_checkpoint(checkpoint, checkpoint.parent / "bundle")
    assert not (checkpoint.parent / "bundle").exists()


def test_codes_without_their_scale_are_refused(checkpoint: Path, edit_quantized: Callable[..., None]) -> None:
    edit_quantized(checkpoint, lambda weights: {k: w for k, w in weights.items() if k != f"{LAYER}.weight_scale"})
    refused(checkpoint, rf"{LAYER}\.weight \(U8\), and have no weight_scale")


def test_full_precision_layer_that_is_not_listed_is_refused(
    checkpoint: Path, edit_quantized: Callable[..., None]
) -> None:
    def unpack_one(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del weights[f"{LAYER}.weight_scale"]
        return weights | {f"{LAYER}.weight": torch.zeros(80, 48)}

    edit_quantized(checkpoint, unpack_one)
    refused(checkpoint, rf"{LAYER}\.weight is stored as F32 without a weight_scale.*modules_to_not_convert")


def test_quantized_layer_that_the_config_skips_is_refused(
    checkpoint: Path, edit_quantized: Callable[..., None]
) -> None:
    edit_quantized(checkpoint, modules_to_not_convert=["up_proj", "lm_head", "model.vision_model", "model.connector"])
    refused(checkpoint, r"up_proj\.weight is stored as U8.*but modules_to_not_convert lists its layer")


def test_rounded_weights_where_training_weights_are_promised_are_refused(
    checkpoint: Path, edit_quantized: Callable[..., None]
) -> None:
    edit_quantized(checkpoint, quantization_mode="online")
    refused(checkpoint, r"with a weight_scale \[1\], but quantization_mode online")


def test_unpacked_weights_where_packed_ones_are_promised_are_refused(
    save_bitnet: Callable[..., Any], tmp_path: Path, edit_quantized: Callable[..., None]
) -> None:
    save_bitnet(tmp_path / "checkpoint", "autobitlinear", packs=False)
    edit_quantized(tmp_path / "checkpoint", linear_class="bitlinear")
    refused(tmp_path / "checkpoint", "stored as F32 .* but linear_class bitlinear packs")


def test_code_that_is_no_ternary_weight_is_refused(checkpoint: Path, edit_quantized: Callable[..., None]) -> None:
    name = f"{LAYER}.weight"
    edit_quantized(checkpoint, lambda weights: weights | {name: weights[name] | 0b1100})
    refused(checkpoint, f"{name} holds the 2-bit code 3")


def test_one_scale_a_matrix_is_what_is_known(checkpoint: Path, edit_quantized: Callable[..., None]) -> None:
    edit_quantized(checkpoint, lambda weights: weights | {f"{LAYER}.weight_scale": torch.ones(80)})
    refused(checkpoint, r"weight_scale \[80\]; a matrix with one scale")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq"}, "quant_method 'gptq' is not read; known: bitnet, bitsandbytes"),
        ({"linear_class": "other"}, "linear_class 'other', quantization_mode 'offline'; known are"),
        ({"use_rms_norm": True}, "use_rms_norm: a norm inside each layer"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert is 'lm_head', expected a list"),
    ],
)
def test_settings_that_are_not_built_are_refused(
    settings: dict[str, Any], message: str, checkpoint: Path, edit_quantized: Callable[..., None]
) -> None:
    edit_quantized(checkpoint, **settings)
    refused(checkpoint, message, UnsupportedConfigError)
