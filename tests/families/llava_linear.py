"""Tiny LLaVA checkpoints whose connector is one matrix, as before LLaVA-1.5; SITTA's map and VLAP's are such ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints import llava_config, save_llava
from safetensors.numpy import load_file, save_file
from weight_shapes import Config

PROJECTOR = "multi_modal_projector"


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "clip-class-token-and-patches-no-bias": _config(
            "clip", vision_feature_select_strategy="full", multimodal_projector_bias=False
        ),
        "siglip-two-layers-side-by-side": _config("siglip", vision_feature_layer=[-1, 2]),
    }


def _config(tower: str, **top: object) -> Config:
    config = llava_config(tower, "llama", mm_projector_type="linear", **top)
    config["text_config"]["tie_word_embeddings"] = False
    return config


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; the connector's matrix in the place of its two layers."""
    save_llava(folder, config)
    path = folder / "model.safetensors"
    weights = load_file(path)
    layers = {key: weights.pop(key) for key in sorted(weights) if key.startswith(PROJECTOR)}
    weights[f"{PROJECTOR}.weight"] = layers[f"{PROJECTOR}.linear_1.weight"]
    if config.get("multimodal_projector_bias", True):
        weights[f"{PROJECTOR}.bias"] = layers[f"{PROJECTOR}.linear_1.bias"]
    save_file(weights, path, {"format": "pt"})


def model(folder: Path) -> Any:
    """Return transformers' model with one matrix in the place of its connector.

    The connector of LLaVA before 1.5 is a linear layer from image features to the space of word embeddings (arXiv
    2304.08485, section 4.1); SITTA's is a linear mapping between these spaces, fitted without gradients, which has no
    bias (arXiv 2307.05591).
    """
    import torch
    from safetensors.torch import load_file as load_torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    found = LlavaForConditionalGeneration(LlavaConfig(**json.loads((folder / "config.json").read_text())))
    weights = load_torch(folder / "model.safetensors")
    connector = {key.rsplit(".", 1)[1]: weights.pop(key) for key in sorted(weights) if key.startswith(PROJECTOR)}
    rows, columns = connector["weight"].shape
    found.model.multi_modal_projector = torch.nn.Linear(columns, rows, bias="bias" in connector)
    found.model.multi_modal_projector.load_state_dict(connector)
    for prefix, part in _parts(found):
        part.load_state_dict({key[len(prefix) :]: weights[key] for key in weights if key.startswith(prefix)})
    return found.eval()


def _parts(found: Any) -> list[tuple[str, Any]]:
    """Return where the checkpoint keeps each part that transformers has as it is."""
    return [
        ("language_model.model.", found.model.language_model),
        ("language_model.lm_head.", found.lm_head),
        ("vision_tower.", found.model.vision_tower),
    ]
