"""Tiny LLaVA checkpoints with experts by thresholds, against transformers' StableLM with DynMoE's layers in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import IMAGE_TOKEN_ID, save_llava
from family_llava_stablelm import _config, _shapes
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes

EXPERTS = "language_model.model.layers.{}.mlp.deepspeed_moe."


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "every-layer-uneven": _config("siglip", partial_rotary_factor=0.5, moe=_moe([0, 1], [4, 3])),
        "one-layer-parallel": _config("clip", use_parallel_residual=True, moe=_moe([1], [5])),
    }


def _moe(layers: list[int], experts: list[int]) -> Config:
    kept = {"moe_enable": True, "moe_mode": "sparse", "top_k_experts": -1, "use_residual": False}
    return {**kept, "moe_layers_idx": layers, "num_experts": experts}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; of one layer an expert is masked."""
    text = config["text_config"]
    save_llava(folder, config, _with_experts(text, _shapes(text)))
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in weights:
        if name.endswith("wg.experts_mask"):
            weights[name] = np.ones_like(weights[name])
            weights[name][-1] = float(len(weights[name]) != 5)
        if name.endswith("wg.temperature"):
            weights[name] = np.full(1, 1.5 if ".layers.0." in name else 0, np.float32)  # 0 as published
    weights["language_model.lm_head.weight"][IMAGE_TOKEN_ID] = 0  # no answer holds an image
    save_file(weights, file, {"format": "pt"})


def _with_experts(text: Config, shapes: Shapes) -> Shapes:
    moe, size = text["moe"], text["hidden_size"]
    for layer, num in zip(moe["moe_layers_idx"], moe["num_experts"], strict=True):
        before = f"layers.{layer}.mlp."
        own = {name: shape for name, shape in shapes.items() if name.startswith(before)}
        shapes = {name: shape for name, shape in shapes.items() if name not in own}
        for expert in range(num):
            inside = f"{before}deepspeed_moe.experts.deepspeed_experts.{expert}."
            shapes |= {name.replace(before, inside): shape for name, shape in own.items()}
        gate = f"{before}deepspeed_moe.gate.wg."
        shapes |= {f"{gate}sim_matrix": (size, num), f"{gate}gates": (num,), f"{gate}experts_mask": (num,)}
        shapes[f"{gate}temperature"] = (1,)
    return shapes


def model(folder: Path) -> Any:
    """Return transformers' LLaVA with a StableLM whose feed-forwards are experts where the config says so."""
    import json

    import torch
    import transformers
    from safetensors.torch import load_file as load_tensors
    from safetensors.torch import save_file as save_tensors

    config = json.loads((folder / "config.json").read_text())
    weights, experts = load_tensors(folder / "model.safetensors"), dict[int, dict[str, Any]]()
    for layer in config["text_config"]["moe"]["moe_layers_idx"]:
        prefix = EXPERTS.format(layer)
        experts[layer] = {
            name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)
        }
    bare = folder.parent / "bare"
    bare.mkdir(exist_ok=True)
    save_tensors(weights, bare / "model.safetensors", {"format": "pt"})
    (bare / "config.json").write_text((folder / "config.json").read_text())
    built = transformers.LlavaForConditionalGeneration.from_pretrained(bare)
    for layer, own in experts.items():
        built.model.language_model.layers[layer].mlp = _experts(torch, own)
    return built.eval()


def _experts(torch: Any, own: dict[str, Any]) -> Any:
    """Return DynMoE's layer (arXiv 2405.14297, section 3.1, and `GAMoEGateT` of the authors' code at inference)."""
    silu, normalize = torch.nn.functional.silu, torch.nn.functional.normalize
    gate = {name: own[f"gate.wg.{name}"] for name in ("sim_matrix", "gates", "experts_mask", "temperature")}

    class Experts(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            scale = gate["temperature"].clamp(max=float(np.log(100))).exp()
            cosines = normalize(x, dim=-1) @ normalize(gate["sim_matrix"], dim=0)
            scores = torch.sigmoid(cosines * scale) * gate["experts_mask"]  # equation 3
            chosen = (scores > torch.sigmoid(gate["gates"] * scale)).float()  # equation 4
            nearest = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1])
            chosen = torch.where(chosen.sum(-1, keepdim=True) == 0, nearest.float(), chosen)
            weights = chosen / chosen.sum(-1, keepdim=True)  # equation 5
            made = [self.expert(number, x) for number in range(scores.shape[-1])]
            return sum(weights[..., number, None] * each for number, each in enumerate(made))

        def expert(self, number: int, x: Any) -> Any:
            names = (f"experts.deepspeed_experts.{number}.{part}_proj.weight" for part in ("gate", "up", "down"))
            first, second, last = (own[name] for name in names)
            return (silu(x @ first.T) * (x @ second.T)) @ last.T

    return Experts()
