"""SmolVLM checkpoints with ternary decoder layers, as transformers' `bitnet` quantization stores them.

`AutoModelForImageTextToText.from_pretrained` loads them where `accelerate` is installed; `load_bitnet` does without and
is held to the same logits.
"""

from __future__ import annotations

import json
import pathlib

from safetensors.torch import load_file
from torch import nn
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from reference.shipping import derive
from reference.ternary import StoredTernaryLinear, TernaryLinear, checkpoint_tensors, unpack

_LINEAR_CLASS = "bitlinear"
QUANTIZATION = {
    "quant_method": "bitnet",
    "linear_class": _LINEAR_CLASS,
    "quantization_mode": "offline",
    "modules_to_not_convert": ["model.vision_model", "model.connector", "lm_head"],
}
"""As transformers reads it. Of its two linear classes, `autobitlinear` leaves float tensors as they are stored and so
computes in float16 only; `bitlinear` computes in any number format. It divides by the stored scale."""


def make_ternary(layers: nn.Module) -> None:
    """Replace every linear layer inside `layers` by a ternary one that shares its weight."""
    for name, module in list(layers.named_modules()):
        if isinstance(module, nn.Linear):
            layers.set_submodule(name, TernaryLinear.of(module))


def save_bitnet(model: SmolVLMForConditionalGeneration, source: pathlib.Path, folder: pathlib.Path) -> None:
    """Write a model whose decoder layers are ternary, codes packed.

    Args:
        model: After `make_ternary`; its ternary layers are stored from their weights as they are.
        source: Checkpoint that it started from.
        folder: Created when missing.
    """
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": QUANTIZATION}
    tensors = checkpoint_tensors(model)
    divisors = {name: 1 / tensor.float() for name, tensor in tensors.items() if name.endswith(".weight_scale")}
    derive(source, folder, config, tensors | divisors)


def is_bitnet(folder: pathlib.Path) -> bool:
    """Say whether a folder holds a checkpoint that `load_bitnet` reads."""
    quantization = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    return all(quantization.get(key) == QUANTIZATION[key] for key in ("quant_method", "linear_class"))


def load_bitnet(folder: pathlib.Path) -> SmolVLMForConditionalGeneration:
    """Return the model of a checkpoint that `save_bitnet` wrote, in float32, ready to answer.

    Raises:
        ValueError: The checkpoint is of another kind.
    """
    if not is_bitnet(folder):
        raise ValueError(f"{folder} is no bitnet checkpoint of linear class {_LINEAR_CLASS}")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    model = SmolVLMForConditionalGeneration(SmolVLMConfig(**config))
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith(".weight_scale"):
            weights[name] = 1 / tensor.float()
            layer = model.get_submodule(name.removesuffix(".weight_scale"))
            stored = StoredTernaryLinear(layer.in_features, layer.out_features)
            model.set_submodule(name.removesuffix(".weight_scale"), stored)
        else:
            weights[name] = (tensor if tensor.is_floating_point() else unpack(tensor)).float()
    model.load_state_dict(weights)
    return model.eval()
