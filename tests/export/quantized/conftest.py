"""Tiny checkpoints that are quantized already, made by the libraries whose formats they are."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from graphs.store import open_graph

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Weights = dict[str, torch.Tensor]

SKIPS = ["model.vision_model", "model.connector", "lm_head"]


def put_quantized(folder: Path, stored: Weights, settings: dict[str, Any]) -> None:
    """Put other weights and a `quantization_config` into a checkpoint."""
    from safetensors.torch import save_file

    save_file({name: weight.contiguous() for name, weight in stored.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


@pytest.fixture
def edit_quantized() -> Callable[..., None]:
    """Change weights and settings of a checkpoint in place: (folder, edit of the weights, settings)."""

    from safetensors.torch import load_file

    def edit(folder: Path, change: Callable[[Weights], Weights] = lambda weights: weights, **settings: Any) -> None:
        config = json.loads((folder / "config.json").read_text())
        stored = load_file(folder / "model.safetensors")
        put_quantized(folder, change(stored), config.get("quantization_config", {}) | settings)

    return edit


@pytest.fixture(scope="session")
def bitnet_layers() -> ModuleType:
    """transformers' BitNet layers, run without the compiler that they ask for."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.compile imports what torch itself deprecates
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        from transformers.integrations import bitnet
    return bitnet


@pytest.fixture(scope="session")
def save_bitnet(
    checkpoints: ModuleType, bitnet_layers: ModuleType, load_reference: Callable[[Path], Any]
) -> Callable[..., PreTrainedModel]:
    """Write a SmolVLM checkpoint with BitNet layers in its decoder; return transformers' own model of it."""
    import torch
    from transformers import BitNetQuantConfig

    def save(folder: Path, linear_class: str, mode: str = "offline", *, packs: bool = True) -> PreTrainedModel:
        checkpoints.save_smolvlm(folder)
        model = load_reference(folder)
        settings = BitNetQuantConfig(modules_to_not_convert=SKIPS, linear_class=linear_class, quantization_mode=mode)
        dense = {name: weight.clone() for name, weight in model.state_dict().items()}
        bitnet_layers.replace_with_bitnet_linear(model, SKIPS, settings)
        stored = {name: weight for name, weight in dense.items() if name != "lm_head.weight"}
        kinds = (bitnet_layers.BitLinear, bitnet_layers.AutoBitLinear)
        for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, kinds)]:
            weight = dense[f"{name}.weight"]
            mean = weight.abs().mean().reshape(1)
            codes = (weight / mean).round().clamp(-1, 1)
            layer.weight = torch.nn.Parameter(codes if mode == "offline" else weight, requires_grad=False)
            if linear_class == "bitlinear":
                del layer.weight
                layer.weight, layer.weight_scale = bitnet_layers.pack_weights(codes.clone()), 1 / mean
            elif mode == "offline":
                layer.weight_scale = mean
            if mode == "offline":
                stored[f"{name}.weight"] = bitnet_layers.pack_weights(codes.clone()) if packs else codes
                stored[f"{name}.weight_scale"] = layer.weight_scale
        put_quantized(folder, stored, settings.to_dict())
        return model.eval()

    return save


@pytest.fixture(scope="session")
def save_bitsandbytes(checkpoints: ModuleType, load_reference: Callable[[Path], Any]) -> Callable[..., PreTrainedModel]:
    """Write a SmolVLM checkpoint whose decoder's linear layers bitsandbytes quantized; return the model with them."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="its formats are made by itself")
    import torch

    def layer_of(dense: torch.nn.Linear, kind: str, *, nested: bool, dtype: torch.dtype) -> torch.nn.Module:
        sizes = (dense.in_features, dense.out_features)
        weight = dense.weight.detach().to(dtype)
        if kind == "int8":
            layer = bitsandbytes.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
            layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
            return layer
        how = {"compress_statistics": nested, "quant_type": kind}
        layer = bitsandbytes.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.float32, **how)
        layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, **how).to("cpu")
        return layer

    def save(
        folder: Path, kind: str, *, nested: bool = False, dtype: str = "float32", width: int = 64
    ) -> PreTrainedModel:
        heads = {"num_attention_heads": width // 8, "num_key_value_heads": 2}
        sizes = {"hidden_size": width, "intermediate_size": 128, **heads}
        checkpoints.save_smolvlm(folder, checkpoints.smolvlm_config(sizes))
        model = load_reference(folder)
        layers = model.model.text_model.layers
        for name, dense in [(n, m) for n, m in layers.named_modules() if isinstance(m, torch.nn.Linear)]:
            layers.set_submodule(name, layer_of(dense, kind, nested=nested, dtype=getattr(torch, dtype)))
        settings = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": kind != "int8",
            "load_in_8bit": kind == "int8",
            "llm_int8_skip_modules": SKIPS,
            "bnb_4bit_quant_type": "fp4" if kind == "int8" else kind,
            "bnb_4bit_use_double_quant": nested,
        }
        stored = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
        put_quantized(folder, stored, settings)
        return model

    return save


@pytest.fixture(scope="session")
def decoder_matrices() -> Callable[[Path], dict[str, np.ndarray]]:
    """Return the decoder's matrices of a bundle as checkpoints hold them, [N, K], by name."""

    def matrices(bundle: Path) -> dict[str, np.ndarray]:
        graph = open_graph(bundle / "decoder.onnx").graph
        values = {name: value.const_value.numpy() for name, value in graph.initializers.items()}
        return {name: array.T for name, array in values.items() if array.ndim == 2}

    return matrices
